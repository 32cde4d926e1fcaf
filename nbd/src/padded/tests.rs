use super::*;

/// 700 bytes of ones.
struct Ones;

impl Export for Ones {
    fn info(&self) -> ExportInfo {
        ExportInfo { size: 700, preferred_block: 512, description: String::new() }
    }

    fn try_read(&self, offset: u64, len: u32, out: &mut Segments) -> Option<Result<(), Failure>> {
        assert!(len > 0 && offset + u64::from(len) <= 700);
        out.push(Segment::Bytes(vec![1; len as usize].into()));
        Some(Ok(()))
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Segments, Failure> {
        let mut out = Segments::new();
        self.try_read(offset, len, &mut out).unwrap()?;
        Ok(out)
    }

    async fn block_status(&self, offset: u64, len: u64, _max: usize) -> Result<Vec<Extent>, Errno> {
        assert!(len > 0 && offset + len <= 700);
        Ok(vec![Extent { len, flags: ExtentFlags::empty(), depth: 1, local: true }])
    }

    async fn prefetch(&self, offset: u64, len: u64) {
        assert!(len > 0 && offset + len <= 700);
    }
}

/// How many ones and zeros the segments hold.
fn count(segments: &Segments) -> (u32, u32) {
    segments.iter().fold((0, 0), |(ones, zeros), segment| match segment {
        Segment::Zero(len) => (ones, zeros + len),
        other => (ones + other.len(), zeros),
    })
}

#[tokio::test]
async fn zeros_follow_the_disk_up_to_a_whole_sector() {
    let padded = Padded::new(Arc::new(Ones));
    assert_eq!(padded.info().size, 1024);
    for (offset, len, expected) in [
        (0, 1024, (700, 324)),
        (512, 512, (188, 324)),
        (0, 700, (700, 0)),
        (700, 324, (0, 324)),
        (800, 1, (0, 1)),
    ] {
        assert_eq!(count(&padded.read(offset, len).await.unwrap()), expected);
        let mut out = Segments::new();
        padded.try_read(offset, len, &mut out).unwrap().unwrap();
        assert_eq!(count(&out), expected);
        padded.prefetch(offset, u64::from(len)).await;
    }
    assert_eq!(padded.block_status(0, 1024, 1).await.unwrap()[0].len, 700);
    let hole = ExtentFlags::HOLE | ExtentFlags::ZERO;
    let behind = Extent { len: 24, flags: hole, depth: 0, local: true };
    assert_eq!(padded.block_status(1000, 24, 1).await.unwrap(), [behind]);
}
