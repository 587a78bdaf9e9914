//! Signatures as cosign makes them with a key: a manifest beside the image's, tagged by its digest, whose layers are statements that were
//! signed.
//!
//! ```text
//! REPOSITORY:sha256-<digits>.sig   layers: a statement each, {critical: {type, image: {docker-manifest-digest}}},
//!                                  with dev.cosignproject.cosign/signature, base64 of ECDSA over it
//! ```
//!
//! See cosign's `specs/SIGNATURE_SPEC.md`. Keys are of the curve P-256, as `cosign generate-key-pair` makes them. Transparency logs and
//! certificates are not looked at: whoever has the key is who is trusted.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::OciError;

/// What a layer of a signature carries it in.
pub(crate) const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// What a statement is about.
const KIND: &str = "cosign container image signature";

/// What stands before the 65 bytes of a point of P-256 in a public key (RFC 5480, DER).
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A public key that signatures are checked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    point: Vec<u8>,
    id: String,
}

#[derive(Deserialize)]
struct Statement {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: Signed,
}

#[derive(Deserialize)]
struct Signed {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

impl Key {
    /// Reads a public key (PEM, `cosign.pub`).
    ///
    /// # Errors
    /// `Malformed` for another kind of key, or none.
    pub fn parse(pem: &str) -> Result<Self, OciError> {
        let wrong = || {
            OciError::Malformed(
                "it is no public key of P-256 in PEM, as `cosign generate-key-pair` makes it".to_owned(),
            )
        };
        let body = pem
            .split_once("-----BEGIN PUBLIC KEY-----")
            .and_then(|(_, rest)| rest.split_once("-----END"))
            .ok_or_else(wrong)?;
        let text: String = body.0.split_whitespace().collect();
        let der = STANDARD.decode(text).map_err(|_| wrong())?;
        let point = der.strip_prefix(P256.as_slice()).filter(|point| point.len() == 65).ok_or_else(wrong)?;
        Ok(Self { point: point.to_vec(), id: hex::encode(Sha256::digest(&der)) })
    }

    /// What tells it from others: SHA-256 of the key, in hexadecimal.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether this statement is about the manifest of this digest, and was signed with the key.
    pub(crate) fn has_signed(&self, digest: &str, statement: &[u8], signature: &str) -> bool {
        let Ok(signature) = STANDARD.decode(signature.trim()) else { return false };
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point);
        // Nothing is read of what was not signed.
        key.verify(statement, &signature).is_ok()
            && serde_json::from_slice(statement)
                .is_ok_and(|Statement { critical }| critical.kind == KIND && critical.image.digest == digest)
    }
}

/// The tag of a manifest's signatures.
pub(crate) fn tag(digest: &str) -> String {
    format!("{}.sig", digest.replacen(':', "-", 1))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

    use super::*;

    const DIGEST: &str = "sha256:aa";

    fn statement(kind: &str, digest: &str) -> String {
        format!(
            r#"{{"critical": {{"identity": {{}}, "image": {{"docker-manifest-digest": "{digest}"}}, "type": "{kind}"}}, "optional": null}}"#
        )
    }

    fn pair() -> (EcdsaKeyPair, Key) {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let der = [P256.as_slice(), pair.public_key().as_ref()].concat();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
        let key = Key::parse(&pem).unwrap();
        (pair, key)
    }

    #[test]
    fn a_statement_counts_when_this_key_has_signed_it_about_this_image() {
        let ((pair, key), (other, _)) = (pair(), pair());
        let sign = |pair: &EcdsaKeyPair, text: &str| {
            STANDARD.encode(pair.sign(&SystemRandom::new(), text.as_bytes()).unwrap())
        };
        let good = statement(KIND, DIGEST);
        assert!(key.has_signed(DIGEST, good.as_bytes(), &sign(&pair, &good)));
        assert!(!key.has_signed(DIGEST, good.as_bytes(), &sign(&other, &good)));
        assert!(!key.has_signed("sha256:bb", good.as_bytes(), &sign(&pair, &good)));
        assert!(!key.has_signed(DIGEST, good.as_bytes(), "no base64!") && !key.has_signed(DIGEST, good.as_bytes(), ""));
        let changed = good.replace("null", "true");
        assert!(!key.has_signed(DIGEST, changed.as_bytes(), &sign(&pair, &good)));
        for signed in [statement("something else", DIGEST), "no json".to_owned(), "{}".to_owned()] {
            assert!(!key.has_signed(DIGEST, signed.as_bytes(), &sign(&pair, &signed)));
        }
        assert_eq!((tag("sha256:aa").as_str(), key.id().len()), ("sha256-aa.sig", 64));
    }

    #[test]
    fn other_keys_are_none() {
        for pem in [
            "",
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
            "-----BEGIN PUBLIC KEY-----\n%\n-----END",
        ] {
            assert!(matches!(Key::parse(pem), Err(OciError::Malformed(_))), "{pem}");
        }
    }
}
