//! Who a client is, as far as encryption tells.

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};

/// A client that negotiates.
#[derive(Clone, Debug, Default)]
pub struct Client {
    certificate: Option<CertificateDer<'static>>,
}

/// The SHA-256 of a certificate, by which a client is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// As `openssl x509 -fingerprint -sha256` shows it: 64 hexadecimal digits in either case, with colons or without,
    /// `sha256:` before them or not. None for anything else.
    pub fn parse(text: &str) -> Option<Fingerprint> {
        let text = text.strip_prefix("sha256:").unwrap_or(text);
        let digits: Vec<u32> =
            text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16)).collect::<Option<_>>()?;
        let (pairs, []) = digits.as_chunks::<2>() else { return None };
        let bytes: Vec<u8> = pairs.iter().map(|[high, low]| (high * 16 + low) as u8).collect();
        bytes.try_into().ok().map(Fingerprint)
    }
}

impl Client {
    /// A client that showed `certificate`, which an authority vouches for; or none.
    pub(crate) fn with(certificate: Option<CertificateDer<'static>>) -> Client {
        Client { certificate }
    }

    /// The fingerprint of the certificate that it showed, and that was verified. None for a client that showed none, or was
    /// not asked for one.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.certificate.as_ref().map(|certificate| Fingerprint(Sha256::digest(certificate).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_openssl_writes_them() {
        let plain = "00ff".repeat(16);
        let colons: Vec<String> = (0..16).map(|_| "00:FF".to_owned()).collect();
        let wanted = Fingerprint::parse(&plain).unwrap();
        assert_eq!(Fingerprint::parse(&colons.join(":")), Some(wanted));
        assert_eq!(Fingerprint::parse(&format!("sha256:{plain}")), Some(wanted));
        for wrong in ["", "00", &plain[1..], &format!("{plain}00"), &plain.replace('f', "g"), "sha1:00"] {
            assert_eq!(Fingerprint::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Client::default().fingerprint(), None);
        let known = Client::with(Some(CertificateDer::from(b"abc".to_vec())));
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(known.fingerprint(), Fingerprint::parse(sum));
    }
}
