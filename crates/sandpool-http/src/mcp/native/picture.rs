//! Images as models can see them: as large as they look at, and small enough for a message.
//!
//! What a sandbox calls an image is hostile. It is read with limits on its sides and on memory, one at a time, by decoders that are
//! written in Rust, on a thread that may panic; what cannot be read is not shown.

use std::io::Cursor;
use std::sync::LazyLock;

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat, ImageReader, Limits};
use tokio::sync::Semaphore;

/// The longest side of what is shown, in pixels: models scale down what is larger.
const MOST_SIDE: u32 = 1_568;

/// The most bytes of what is shown.
const MOST_BYTES: usize = 200 * 1024;

/// The longest side of what is read, in pixels, and the memory that reading may take, in bytes.
const MOST_READ_SIDE: u32 = 16_384;
const MOST_READ: u64 = 128 << 20;

/// How often it is halved until it is small enough.
const HALVINGS: u32 = 4;

/// JPEG's, from 1 to 100.
const QUALITY: u8 = 80;

/// One is read at a time: [`MOST_READ`] is what all of them take.
static TURN: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(1));

/// What is shown of an image.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// All of it.
    Whole,
    /// A smaller one, of this type.
    Smaller(&'static str, Vec<u8>),
    /// Nothing: it is none, or too large to be looked at.
    Nothing,
}

/// What is shown of these bytes.
pub(super) async fn seen(data: &[u8]) -> Seen {
    if data.len() <= MOST_BYTES && sides(data).is_some_and(|(width, height)| width.max(height) <= MOST_SIDE) {
        return Seen::Whole;
    }
    let Ok(_turn) = TURN.acquire().await else { return Seen::Nothing };
    let data = data.to_vec();
    let smaller = tokio::task::spawn_blocking(move || smaller(&data)).await;
    smaller.ok().flatten().map_or(Seen::Nothing, |(kind, data)| Seen::Smaller(kind, data))
}

/// Width and height, as the image says them.
fn sides(data: &[u8]) -> Option<(u32, u32)> {
    ImageReader::new(Cursor::new(data)).with_guessed_format().ok()?.into_dimensions().ok()
}

fn smaller(data: &[u8]) -> Option<(&'static str, Vec<u8>)> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MOST_READ_SIDE);
    limits.max_image_height = Some(MOST_READ_SIDE);
    limits.max_alloc = Some(MOST_READ);
    let mut reader = ImageReader::new(Cursor::new(data)).with_guessed_format().ok()?;
    reader.limits(limits);
    let mut image = reader.decode().ok()?;
    if image.width().max(image.height()) > MOST_SIDE {
        image = image.thumbnail(MOST_SIDE, MOST_SIDE);
    }
    for _ in 0..=HALVINGS {
        if let Some(png) = written(&image) {
            return Some(("image/png", png));
        }
        if let Some(jpeg) = photographed(&image) {
            return Some(("image/jpeg", jpeg));
        }
        image = image.thumbnail((image.width() / 2).max(1), (image.height() / 2).max(1));
    }
    None
}

/// As PNG, which keeps lines and letters sharp, if that is small enough.
fn written(image: &DynamicImage) -> Option<Vec<u8>> {
    let mut png = Vec::new();
    image.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).ok()?;
    (png.len() <= MOST_BYTES).then_some(png)
}

/// As JPEG, on white, if that is small enough.
fn photographed(image: &DynamicImage) -> Option<Vec<u8>> {
    let mut on_white = image::RgbaImage::from_pixel(image.width(), image.height(), image::Rgba([255; 4]));
    image::imageops::overlay(&mut on_white, &image.to_rgba8(), 0, 0);
    let mut jpeg = Vec::new();
    let opaque = DynamicImage::ImageRgba8(on_white).into_rgb8();
    opaque.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, QUALITY)).ok()?;
    (jpeg.len() <= MOST_BYTES).then_some(jpeg)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noise: nothing that a compressor could make small.
    fn noise(width: u32, height: u32) -> DynamicImage {
        let mut state = 1_u32;
        DynamicImage::ImageRgba8(image::RgbaImage::from_fn(width, height, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let [red, green, blue, alpha] = state.to_be_bytes();
            image::Rgba([red, green, blue, alpha])
        }))
    }

    fn png(image: &DynamicImage) -> Vec<u8> {
        let mut data = Vec::new();
        image.write_to(&mut Cursor::new(&mut data), ImageFormat::Png).unwrap();
        data
    }

    #[tokio::test]
    async fn what_is_small_is_shown_as_it_is() {
        let data = png(&DynamicImage::new_rgb8(MOST_SIDE, 10));
        assert_eq!(seen(&data).await, Seen::Whole);
    }

    #[tokio::test]
    async fn long_sides_are_scaled_down_and_stay_sharp() {
        let Seen::Smaller("image/png", data) = seen(&png(&DynamicImage::new_rgb8(4_000, 1_000))).await else {
            panic!()
        };
        assert_eq!(sides(&data), Some((1_568, 392)));
    }

    #[tokio::test]
    async fn what_has_many_bytes_gets_fewer() {
        let data = png(&noise(900, 900));
        assert!(data.len() > 10 * MOST_BYTES);
        let Seen::Smaller("image/jpeg", small) = seen(&data).await else { panic!() };
        assert!(small.len() <= MOST_BYTES);
        let (width, height) = sides(&small).unwrap();
        assert!(width == height && width >= 225, "{width}");
    }

    #[tokio::test]
    async fn a_bomb_and_a_lie_are_not_shown() {
        // It says that it is larger than anybody reads; its bytes would be few.
        let bomb = png(&DynamicImage::new_luma8(MOST_READ_SIDE + 1, 1));
        assert_eq!(seen(&bomb).await, Seen::Nothing);
        let mut cut = png(&noise(900, 900));
        cut.truncate(cut.len() / 2);
        assert_eq!(seen(&cut).await, Seen::Nothing);
        assert_eq!(seen(&vec![7; MOST_BYTES + 1]).await, Seen::Nothing);
    }
}
