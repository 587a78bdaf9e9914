//! A kernel as an ELF file, out of the file that its distribution packs it in (bzImage).
//!
//! Where in that file it is, is said by its header (Linux' Documentation/arch/x86/boot.rst, boot protocol 2.08 and newer). The last four bytes
//! of what is packed say how long it is unpacked.

use std::io::{self, Write};
use std::process::{Command, Stdio};

/// The longest kernel, unpacked, in bytes.
const LONGEST: usize = 512 << 20;

/// What a block of LZ4's legacy form is unpacked to, at most.
const BLOCK: usize = 8 << 20;

const ELF: &[u8] = b"\x7fELF";
const LZ4: &[u8] = &[0x02, 0x21, 0x4c, 0x18];

/// Unpacks it.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] says what it is not; [`io::ErrorKind::NotFound`] which program is missing.
pub(crate) fn kernel(file: &[u8]) -> io::Result<Vec<u8>> {
    if file.starts_with(ELF) {
        return Ok(file.to_vec());
    }
    let packed =
        payload(file).ok_or_else(|| wrong("the kernel's file has no header of boot protocol 2.08 or newer"))?;
    let (packed, length) = packed.split_last_chunk().ok_or_else(|| wrong("the kernel is empty"))?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(io::Error::other)?;
    if length > LONGEST {
        return Err(wrong("the kernel is too long"));
    }
    let plain = match packed {
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4(packed, length)?,
        [0xfd, b'7', b'z', b'X', b'Z', ..] => by_program("xz", "xz-utils", packed)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => by_program("zstd", "zstd", packed)?,
        _ => return Err(wrong("the kernel is packed by something else than LZ4, XZ and Zstandard")),
    };
    if plain.len() == length && plain.starts_with(ELF) {
        Ok(plain)
    } else {
        Err(wrong("what is packed in the kernel's file is no kernel"))
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What is packed in the file.
fn payload(file: &[u8]) -> Option<&[u8]> {
    let byte = |at: usize| file.get(at).copied();
    let number = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?) as usize);
    let version = u16::from_le_bytes([byte(0x206)?, byte(0x207)?]);
    if file.get(0x202..0x206)? != b"HdrS" || version < 0x208 {
        return None;
    }
    // None means four.
    let sectors = match byte(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let begin = ((sectors + 1) * 512).checked_add(number(0x248)?)?;
    file.get(begin..begin.checked_add(number(0x24c)?)?)
}

/// LZ4's legacy form: blocks, each after its length.
fn lz4(packed: &[u8], length: usize) -> io::Result<Vec<u8>> {
    let mut rest = packed.strip_prefix(LZ4).unwrap_or_default();
    let mut plain = Vec::new();
    let mut block = vec![0; BLOCK];
    while plain.len() < length {
        let cut = || wrong("the packed kernel is cut short");
        let (size, after) = rest.split_first_chunk().ok_or_else(cut)?;
        let size = usize::try_from(u32::from_le_bytes(*size)).map_err(io::Error::other)?;
        let (one, after) = after.split_at_checked(size).ok_or_else(cut)?;
        let count = lz4_flex::block::decompress_into(one, &mut block).map_err(|error| wrong(&error.to_string()))?;
        if count == 0 {
            return Err(cut());
        }
        plain.extend_from_slice(&block[..count]);
        rest = after;
    }
    Ok(plain)
}

/// By a program of the host.
fn by_program(name: &str, package: &str, packed: &[u8]) -> io::Result<Vec<u8>> {
    let child =
        Command::new(name).arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.map_err(|error| {
        io::Error::new(error.kind(), format!("{name} cannot be run ({error}): apt-get install {package}"))
    })?;
    let input = child.stdin.take();
    let fed = std::thread::scope(|scope| {
        scope.spawn(|| input.map_or(Ok(()), |mut input| input.write_all(packed)));
        child.wait_with_output()
    })?;
    Ok(fed.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with a header, and this packed in it.
    fn file(packed: &[u8], length: usize) -> Vec<u8> {
        let mut file = vec![0; 2 * 512];
        file[0x1f1] = 1;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        let all = [b"code before it", packed, &u32::try_from(length).unwrap().to_le_bytes()].concat();
        file[0x248..0x24c].copy_from_slice(&14_u32.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&u32::try_from(all.len() - 14).unwrap().to_le_bytes());
        file.extend(all);
        file.extend(b"more after it");
        file
    }

    /// LZ4 without any reference to what came before: literals alone.
    fn literals(plain: &[u8]) -> Vec<u8> {
        let mut block = vec![0xf0];
        let mut left = plain.len() - 15;
        while left >= 255 {
            block.push(255);
            left -= 255;
        }
        block.push(u8::try_from(left).unwrap());
        block.extend(plain);
        [&u32::try_from(block.len()).unwrap().to_le_bytes()[..], &block].concat()
    }

    #[test]
    fn a_kernel_is_unpacked_block_by_block() {
        let (one, other) = ([ELF, &[7; 1000]].concat(), vec![8; 300]);
        let packed = [LZ4, &literals(&one), &literals(&other)].concat();
        assert_eq!(kernel(&file(&packed, 1304)).unwrap(), [one.clone(), other].concat());
        assert_eq!(kernel(&one).unwrap(), one);
    }

    #[test]
    fn what_is_no_kernel_is_said() {
        let packed = [LZ4, &literals(&[7; 400])].concat();
        let elf = [LZ4, &literals(&[ELF, &[7; 400]].concat())].concat();
        let mut old = file(&elf, 404);
        old[0x206] = 7;
        for (wrong, why) in [
            (Vec::new(), "boot protocol"),
            (old, "boot protocol"),
            (file(&elf, 404)[..1030].to_vec(), "boot protocol"),
            (file(&packed, 400), "is no kernel"),
            (file(&elf, 405), "cut short"),
            (file(&elf, LONGEST + 1), "too long"),
            (file(&elf[..90], 404), "cut short"),
            (file(b"\x1f\x8b\x08 and so on", 404), "packed by something else"),
        ] {
            let said = kernel(&wrong).expect_err(why).to_string();
            assert!(said.contains(why), "{said}, not {why}");
        }
    }
}
