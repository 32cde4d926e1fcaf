//! Parts for tests: an HTTP [`Origin`] that counts and lies, a [`Relay`] that spoils what a real server says, a [`Faulty`]
//! source, and what every source must do.

mod conformance;
mod fault;
mod origin;
mod relay;

pub use conformance::conforms;
pub use fault::{Faulty, Mishap};
pub use origin::{Lie, Origin};
pub use relay::{Relay, Spoil};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FileSource, HttpSource, Kind, Location, Options};
    use bytes::Bytes;

    fn content(len: usize) -> Bytes {
        (0..len).map(|i| ((i / 3) ^ (i >> 9)) as u8).collect()
    }

    #[tokio::test]
    async fn files_and_http_conform_at_every_size() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0, 1, 511, 4096, 65_536, 65_537, 3_000_001] {
            let content = content(len);
            let path = dir.path().join("x ü.img");
            std::fs::write(&path, &content).unwrap();
            let file = FileSource::open(&Location::from_path(&path)).await.unwrap();
            assert_eq!(conforms(&file, &content).await, Ok(()), "file of {len}");
            let origin = Origin::start(content.clone()).await.unwrap();
            let http = HttpSource::open(&origin.url("x%20ü.img").parse().unwrap(), &Options::default())
                .await
                .unwrap();
            assert_eq!(conforms(&http, &content).await, Ok(()), "http of {len}");
        }
    }

    #[tokio::test]
    async fn the_suite_notices_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, content(5000)).unwrap();
        let source = Faulty::new(FileSource::open_now(&Location::from_path(&path)).unwrap());
        assert_eq!(conforms(&source, &content(5000)).await, Ok(()));
        for mishap in [Mishap::Fail(Kind::Io), Mishap::FailAfter(Kind::Io), Mishap::Short] {
            source.next([mishap.clone(), mishap.clone(), mishap.clone()]);
            assert!(conforms(&source, &content(5000)).await.is_err(), "{mishap:?}");
        }
        assert!(conforms(&source, &content(5001)).await.is_err());
        assert!(conforms(&source, &vec![0; 5000].into()).await.is_err());
        assert!(source.reads().len() > 20);
    }
}
