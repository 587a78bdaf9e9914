//! Our own signing keys: kept in one file, newest first, so that tokens of an older key stay good until they expire.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, EncodingKey};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Keys that are kept: the one that signs, and those before it.
const KEPT: usize = 4;

/// The largest key file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// The length of an uncompressed point of P-256: a 4, then x and y.
const POINT: usize = 65;

#[derive(Serialize, Deserialize)]
struct Stored {
    /// PKCS#8 in PEM, newest first.
    keys: Vec<String>,
}

/// One key, ready for use.
pub(super) struct Key {
    pub(super) id: String,
    pub(super) encoding: EncodingKey,
    pub(super) decoding: DecodingKey,
    x: String,
    y: String,
}

/// The keys of one directory.
pub(super) struct Keys {
    pub(super) all: Vec<Key>,
}

impl Keys {
    /// Reads the keys, and makes the first one if there is none.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let stored = match read(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let first = Stored { keys: vec![generate()?] };
                write(directory, &first)?;
                first
            }
            other => other?,
        };
        Self::parse(&stored)
    }

    /// Reads the keys again: somebody may have rotated them.
    pub(super) fn reread(directory: &Path) -> io::Result<Self> {
        Self::parse(&read(directory)?)
    }

    /// Makes a new key, which signs from now on.
    pub(super) fn rotate(directory: &Path) -> io::Result<Self> {
        let mut stored = read(directory)?;
        stored.keys.insert(0, generate()?);
        stored.keys.truncate(KEPT);
        write(directory, &stored)?;
        Self::parse(&stored)
    }

    fn parse(stored: &Stored) -> io::Result<Self> {
        let all = stored.keys.iter().map(|pem| Key::parse(pem)).collect::<io::Result<Vec<_>>>()?;
        if all.is_empty() { Err(io::Error::other("the key file holds no key")) } else { Ok(Self { all }) }
    }

    /// The newest key: the one that signs.
    pub(super) fn newest(&self) -> &Key {
        &self.all[0]
    }

    /// The public halves, as RFC 7517 writes them.
    pub(super) fn jwks(&self) -> Value {
        let keys: Vec<_> = self.all.iter().map(Key::jwk).collect();
        json!({ "keys": keys })
    }
}

impl Key {
    fn parse(pem: &str) -> io::Result<Self> {
        let pair = KeyPair::from_pem(pem).map_err(io::Error::other)?;
        let point = pair.der_bytes();
        if point.len() != POINT || point[0] != 4 {
            return Err(io::Error::other("not a key of the curve P-256"));
        }
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        Ok(Self {
            id: hex::encode(&Sha256::digest(point)[..8]),
            encoding: EncodingKey::from_ec_pem(pem.as_bytes()).map_err(io::Error::other)?,
            decoding: DecodingKey::from_ec_components(&x, &y).map_err(io::Error::other)?,
            x,
            y,
        })
    }

    fn jwk(&self) -> Value {
        json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.id, "x": self.x, "y": self.y })
    }
}

fn generate() -> io::Result<String> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(io::Error::other)?.serialize_pem())
}

const FILE: &str = "signing.json";

fn read(directory: &Path) -> io::Result<Stored> {
    serde_json::from_str(&read_file(directory, FILE)?).map_err(io::Error::other)
}

fn write(directory: &Path, stored: &Stored) -> io::Result<()> {
    write_file(directory, FILE, &serde_json::to_vec(stored).map_err(io::Error::other)?)
}

/// A file of the keys' directory.
pub(super) fn read_file(directory: &Path, name: &str) -> io::Result<String> {
    let file = fs::File::open(directory.join(name))?;
    io::read_to_string(io::Read::take(file, MAX_FILE))
}

/// Replaces a file of the keys' directory in one step: a reader sees the old keys or the new ones.
pub(super) fn write_file(directory: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let new = directory.join(format!("{name}.{}.new", std::process::id()));
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    out.write_all(text)?;
    out.sync_all()?;
    fs::rename(new, directory.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_and_rotate() {
        let directory = std::env::temp_dir().join(format!("sandpool-keys-{}", std::process::id()));
        let first = Keys::open(&directory).unwrap().newest().id.clone();
        assert_eq!(Keys::open(&directory).unwrap().newest().id, first);
        for _ in 0..KEPT {
            Keys::rotate(&directory).unwrap();
        }
        let now = Keys::reread(&directory).unwrap();
        assert_eq!(now.all.len(), KEPT);
        assert!(now.all.iter().all(|key| key.id != first), "the oldest goes first");
        fs::remove_dir_all(directory).unwrap();
    }
}
