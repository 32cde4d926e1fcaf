//! The least of an NBD client: it reads.

use std::io::{Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection to an export.
pub(crate) struct Nbd(UnixStream);

impl Nbd {
    const MAGIC: u64 = 0x4e42_444d_4147_4943;
    const OPTION: u64 = 0x4948_4156_454f_5054;

    /// To the default export.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        Nbd::connect_to(socket, "")
    }

    /// To the export called `name`. The server ends the connection if there is none.
    pub(crate) fn connect_to(socket: &Path, name: &str) -> Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        assert_eq!(greeting[..16], [Self::MAGIC.to_be_bytes(), Self::OPTION.to_be_bytes()].concat());
        // Fixed newstyle, and no zeros behind the answer to NBD_OPT_EXPORT_NAME.
        stream.write_all(&3_u32.to_be_bytes())?;
        let len = u32::try_from(name.len()).unwrap().to_be_bytes();
        stream
            .write_all(&[&Self::OPTION.to_be_bytes()[..], &[0, 0, 0, 1], &len, name.as_bytes()].concat())?;
        stream.read_exact(&mut [0; 10])?;
        Ok(Nbd(stream))
    }

    /// The bytes `at..at + len`, or the error number of the answer.
    pub(crate) fn read(&mut self, at: u64, len: u32) -> Result<std::result::Result<Vec<u8>, u32>> {
        Ok(self.read_all(&[(at, len)])?.remove(0))
    }

    /// The bytes of each of `places`, or the error number of the answer. All are asked for at once.
    pub(crate) fn read_all(
        &mut self,
        places: &[(u64, u32)],
    ) -> Result<Vec<std::result::Result<Vec<u8>, u32>>> {
        let mut requests = Vec::new();
        for (number, (at, len)) in (0_u64..).zip(places) {
            requests.extend([0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0]);
            requests.extend(number.to_be_bytes());
            requests.extend(at.to_be_bytes());
            requests.extend(len.to_be_bytes());
        }
        self.0.write_all(&requests)?;
        let mut answers: Vec<_> = places.iter().map(|_| None).collect();
        for _ in places {
            let (number, answer) = self.answer(places)?;
            assert!(answers[number].replace(answer).is_none(), "two answers to one request");
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// The next answer to a request for one of `places`, and which.
    fn answer(&mut self, places: &[(u64, u32)]) -> Result<(usize, std::result::Result<Vec<u8>, u32>)> {
        let mut answer = [0; 16];
        self.0.read_exact(&mut answer)?;
        assert_eq!(answer[..4], [0x67, 0x44, 0x66, 0x98]);
        let number = u64::from_be_bytes(answer[8..].try_into().unwrap()) as usize;
        let (_, len) = places.get(number).expect("an answer to another request");
        match u32::from_be_bytes(answer[4..8].try_into().unwrap()) {
            0 => {
                let mut bytes = vec![0; *len as usize];
                self.0.read_exact(&mut bytes)?;
                Ok((number, Ok(bytes)))
            }
            error => Ok((number, Err(error))),
        }
    }
}
