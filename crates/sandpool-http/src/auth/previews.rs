//! Addresses under which anybody who has them reaches one port of one session, for a while.
//!
//! An address holds the session's sandbox, the port, and when it ends, with an HMAC over all of it: nothing is kept. It names the sandbox
//! and not the session, so that it ends with the session and is not good for another one of its name. It is short enough for one
//! label of a host's name, which has 63 signs at most.

use std::io;
use std::path::Path;

use data_encoding::{BASE32_NOPAD_NOCASE, BASE64URL_NOPAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use sandpool_core::ids::SandboxId;
use subtle::ConstantTimeEq;

use super::{Auth, AuthError, keys, now};

const FILE: &str = "previews";

/// Bytes of the HMAC that an address carries: 96 bits, which nobody guesses over a network.
const MAC: usize = 12;

/// Bytes before it: the sandbox, the port, and the end in seconds since 1970.
const SAID: usize = 16 + 2 + 4;

/// What an address leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Preview {
    pub(crate) sandbox: SandboxId,
    pub(crate) port: u16,
    /// Seconds since 1970.
    pub(crate) ends: u32,
}

/// Why an address leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPreview {
    /// It is none of ours.
    Unknown,
    /// Its time is over.
    Over,
}

/// The secret; made when there is none.
pub(super) fn secret(directory: &Path) -> io::Result<Vec<u8>> {
    match keys::read_file(directory, FILE) {
        Ok(text) => return hex::decode(text.trim()).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut secret = vec![0; 32];
    getrandom::fill(&mut secret).map_err(io::Error::other)?;
    keys::write_file(directory, FILE, hex::encode(&secret).as_bytes())?;
    Ok(secret)
}

fn mac(secret: &[u8], said: &[u8]) -> io::Result<Vec<u8>> {
    let key = EncodingKey::from_secret(secret);
    let message = [b"preview ".as_slice(), said].concat();
    let signed = jsonwebtoken::crypto::sign(&message, &key, Algorithm::HS256).map_err(io::Error::other)?;
    let mut mac = BASE64URL_NOPAD.decode(signed.as_bytes()).map_err(io::Error::other)?;
    mac.truncate(MAC);
    Ok(mac)
}

impl Auth {
    /// The word of an address that leads there.
    ///
    /// # Errors
    /// When nothing can be signed.
    pub(crate) fn preview(&self, preview: &Preview) -> Result<String, AuthError> {
        let Preview { sandbox, port, ends } = preview;
        let mut bytes = [sandbox.0.as_slice(), &port.to_be_bytes(), &ends.to_be_bytes()].concat();
        let mac = mac(&self.previews, &bytes).map_err(|error| AuthError::keys(&self.config.keys_dir, error))?;
        bytes.extend(mac);
        Ok(BASE32_NOPAD_NOCASE.encode(&bytes).to_ascii_lowercase())
    }

    /// Where the word of an address leads.
    pub(crate) fn read_preview(&self, word: &str) -> Result<Preview, NoPreview> {
        let bytes = match word.len() {
            0..64 => BASE32_NOPAD_NOCASE.decode(word.as_bytes()).map_err(|_| NoPreview::Unknown)?,
            _ => return Err(NoPreview::Unknown),
        };
        let (said, given) = bytes.split_at_checked(SAID).ok_or(NoPreview::Unknown)?;
        let expected = mac(&self.previews, said).map_err(|_| NoPreview::Unknown)?;
        if given.len() != MAC || !bool::from(given.ct_eq(&expected)) {
            return Err(NoPreview::Unknown);
        }
        let (sandbox, rest) = said.split_first_chunk::<16>().ok_or(NoPreview::Unknown)?;
        let ([high, low], ends) = rest.split_first_chunk::<2>().ok_or(NoPreview::Unknown)?;
        let ends = u32::from_be_bytes(ends.try_into().map_err(|_| NoPreview::Unknown)?);
        if now() >= u64::from(ends) {
            return Err(NoPreview::Over);
        }
        Ok(Preview { sandbox: SandboxId(*sandbox), port: u16::from_be_bytes([*high, *low]), ends })
    }
}
