//! `sandpool image`: images, built once.
use super::Outcome;
use crate::args::Image;
use crate::client::Context;
use crate::failure::Failure;
use crate::server::Images;
use crate::settings::Settings;

pub(crate) fn run(_context: &Context, _image: &Image) -> Outcome {
    Ok(0)
}

pub(crate) fn prepare(_settings: &Settings) -> Result<Images, Failure> {
    Ok(Images::new())
}
