//! What S3 says of an object's content besides its entity tag: the `x-amz-checksum-` headers of GetObject.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderMap;
use sha2::{Digest, Sha256};

/// A checksum of a whole object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    Crc32([u8; 4]),
    Sha256([u8; 32]),
}

impl Checksum {
    /// What an answer says, if it is of a kind that is known here. A checksum of the checksums of an upload's parts,
    /// which has their number behind a hyphen, is not one of the content.
    pub(super) fn of(headers: &HeaderMap) -> Option<Checksum> {
        let value = |name: &str| BASE64_STANDARD.decode(headers.get(name)?.as_bytes()).ok();
        let sha256 = value("x-amz-checksum-sha256").and_then(|sum| sum.try_into().ok());
        let crc32 = || value("x-amz-checksum-crc32").and_then(|sum| sum.try_into().ok());
        sha256.map(Checksum::Sha256).or_else(|| crc32().map(Checksum::Crc32))
    }

    /// Whether `content` has this checksum.
    pub(super) fn is_of(&self, content: &[u8]) -> bool {
        match self {
            Checksum::Crc32(sum) => crc32fast::hash(content).to_be_bytes() == *sum,
            Checksum::Sha256(sum) => Sha256::digest(content).as_slice() == sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Option<Checksum> {
        Checksum::of(
            &pairs
                .iter()
                .map(|(name, sum)| (name.parse::<http::HeaderName>().unwrap(), sum.parse().unwrap()))
                .collect(),
        )
    }

    #[test]
    fn known_kinds_are_verified_and_others_passed_over() {
        // Both check values are of the text that catalogues of CRCs use.
        let crc32 = ("x-amz-checksum-crc32", "y/Q5Jg==");
        let sha256 = ("x-amz-checksum-sha256", "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=");
        for pairs in [&[crc32][..], &[sha256], &[crc32, sha256]] {
            let sum = of(pairs).unwrap();
            assert!(sum.is_of(b"123456789") && !sum.is_of(b"123456780"), "{sum:?}");
        }
        assert_eq!(of(&[]), None);
        for (name, sum) in [("crc32", "y/Q5Jg==-2"), ("crc64nvme", "AAAAAAAAAAA="), ("sha256", "y/Q5Jg==")] {
            assert_eq!(of(&[(&format!("x-amz-checksum-{name}"), sum)]), None, "{name}");
        }
    }
}
