use super::*;
use crate::Segments;
use crate::wire::consts::CommandFlags;
use crate::wire::{Command, Cookie, Request};
use std::io::Write;
use std::os::fd::AsFd;

/// Takes everything out, `step` bytes at a time.
fn take(outbox: &mut Outbox, step: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let Some(next) = outbox.next() else { break };
        let sent = match &next {
            Next::Slices { slices, .. } => {
                let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                assert!(!bytes.is_empty());
                let sent = bytes.len().min(step);
                out.extend_from_slice(&bytes[..sent]);
                sent
            }
            Next::File { file, offset, len } => {
                let mut bytes = vec![0; (*len as usize).min(step)];
                disk::read_exact(*file, &mut bytes, *offset).unwrap();
                out.extend_from_slice(&bytes);
                bytes.len()
            }
        };
        drop(next);
        outbox.advance(sent);
    }
    assert_eq!(outbox.pending(), 0);
    out
}

fn file(bytes: &[u8]) -> Arc<dyn FileBytes> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(file)
}

#[test]
fn everything_comes_out_in_order_however_little_is_taken() {
    let content: Vec<u8> = (0..SENDFILE_MIN as usize * 3).map(|n| (n % 251) as u8).collect();
    let file = file(&content);
    let big = Bytes::from(vec![3; COPY_MAX + 1]);
    for step in [1000, 4096, 100_000, usize::MAX] {
        let mut outbox = Outbox::default();
        let mut expected = Vec::new();
        for round in 0..4_u8 {
            outbox.bytes(&[round; 16]);
            expected.extend_from_slice(&[round; 16]);
            outbox.segment(&Segment::File { file: Arc::clone(&file), offset: 5, len: 4096 }).unwrap();
            expected.extend_from_slice(&content[5..4101]);
            outbox
                .segment(&Segment::File { file: Arc::clone(&file), offset: 9, len: SENDFILE_MIN * 2 })
                .unwrap();
            expected.extend_from_slice(&content[9..9 + SENDFILE_MIN as usize * 2]);
            outbox.segment(&Segment::Zero(200_000)).unwrap();
            expected.resize(expected.len() + 200_000, 0);
            outbox.segment(&Segment::Bytes(big.clone())).unwrap();
            expected.extend_from_slice(&big);
            outbox.segment(&Segment::Bytes(Bytes::new())).unwrap();
            outbox.segment(&Segment::Zero(0)).unwrap();
        }
        assert_eq!(outbox.pending(), expected.len() as u64);
        assert!(take(&mut outbox, step) == expected, "step {step}");
        // The buffers are used again.
        outbox.bytes(b"again");
        assert_eq!(take(&mut outbox, 2), b"again");
    }
}

#[test]
fn small_replies_leave_in_one_slice() {
    let file = file(&[7; 8192]);
    let mut outbox = Outbox::default();
    for _ in 0..32 {
        outbox.bytes(&[0; 16]);
        outbox.segment(&Segment::File { file: Arc::clone(&file), offset: 0, len: 4096 }).unwrap();
    }
    match outbox.next() {
        Some(Next::Slices { slices, more: false }) => {
            assert_eq!((slices.len(), slices[0].len()), (1, 32 * 4112));
        }
        _ => panic!("the replies are not gathered"),
    }
}

/// A file whose first bytes are mapped.
#[derive(Debug)]
struct Mapped(std::fs::File, Vec<u8>);

impl AsFd for Mapped {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl FileBytes for Mapped {
    fn in_memory(&self, offset: u64, len: u32) -> bool {
        self.memory(offset, len).is_some()
    }

    fn memory(&self, offset: u64, len: u32) -> Option<IoSlice<'_>> {
        Some(IoSlice::new(self.1.get(offset as usize..)?.get(..len as usize)?))
    }
}

/// A file of `content`, of which the first `mapped` bytes are mapped.
fn mapped(content: &[u8], mapped: usize) -> Arc<dyn FileBytes> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    Arc::new(Mapped(file, content[..mapped].to_vec()))
}

#[test]
fn what_is_mapped_is_sent_from_there_in_one_go() {
    let file = mapped(&[7; 8192], 4096);
    let mut outbox = Outbox::by_kernel();
    for _ in 0..32 {
        outbox.bytes(&[0; 20]);
        outbox.bytes(&[0; 8]);
        outbox.segment(&Segment::File { file: Arc::clone(&file), offset: 0, len: 4096 }).unwrap();
    }
    let memory = file.memory(0, 4096).unwrap();
    match outbox.next() {
        Some(Next::Slices { slices, more: false }) => {
            assert_eq!(slices.len(), 64);
            assert!(slices.iter().skip(1).step_by(2).all(|slice| slice.as_ptr() == memory.as_ptr()));
        }
        _ => panic!("the replies do not leave together"),
    }
    // Who encrypts reads what is sent, which only the kernel may.
    let mut outbox = Outbox::default();
    outbox.segment(&Segment::File { file: Arc::clone(&file), offset: 0, len: 4096 }).unwrap();
    match outbox.next() {
        Some(Next::Slices { slices, .. }) => assert_ne!(slices[0].as_ptr(), memory.as_ptr()),
        _ => panic!("the reply is not in memory"),
    }
}

#[test]
fn mapped_and_other_stretches_come_out_in_order() {
    let content: Vec<u8> = (0..SENDFILE_MIN as usize * 2).map(|n| (n % 251) as u8).collect();
    let file = mapped(&content, SENDFILE_MIN as usize);
    for (step, unmapped) in [(41, false), (170, true), (1000, false), (4097, true), (usize::MAX, false)] {
        let mut outbox = Outbox::by_kernel();
        let mut expected = Vec::new();
        for round in 0..30_u8 {
            let header = vec![round; [16, 20, 28, HEADER, HEADER + 1, 200][usize::from(round) % 6]];
            outbox.bytes(&header);
            expected.extend_from_slice(&header);
            for n in 0..round % 4 {
                outbox.bytes(&[n; 8]);
                expected.extend_from_slice(&[n; 8]);
            }
            // Some of these are mapped, and some begin or end where nothing is.
            let offset = usize::from(round) * 1999;
            let len = if round % 7 == 6 { SENDFILE_MIN as usize } else { 3000 };
            let len = len.min(content.len() - offset);
            let mark = outbox.mark();
            outbox.bytes(b"taken back");
            let file = Arc::clone(&file);
            let segment = Segment::File { file, offset: offset as u64, len: len as u32 };
            outbox.segment(&segment).unwrap();
            outbox.rollback(&mark);
            outbox.segment(&segment).unwrap();
            expected.extend_from_slice(&content[offset..offset + len]);
        }
        assert_eq!(outbox.pending(), expected.len() as u64);
        if unmapped {
            assert!(outbox.unmap() && !outbox.unmap());
        }
        assert!(take(&mut outbox, step) == expected, "step {step}");
    }
}

#[test]
fn a_reply_that_fails_is_taken_back() {
    let file = file(&[7; 100]);
    let mut outbox = Outbox::default();
    outbox.bytes(b"before");
    let mark = outbox.mark();
    outbox.bytes(b"header");
    outbox.segment(&Segment::Zero(100_000)).unwrap();
    outbox.bytes(b"more");
    let short = Segment::File { file, offset: 0, len: 101 };
    assert_eq!(outbox.segment(&short), Err(Errno::Io));
    assert!(!outbox.rollback(&mark), "it is not the disk that is late");
    outbox.bytes(b"error");
    assert_eq!(outbox.pending(), 11);
    assert_eq!(take(&mut outbox, 4), b"beforeerror");
}

fn request(cookie: u64) -> Request {
    Request {
        flags: CommandFlags::empty(),
        command: Command::Read,
        cookie: Cookie(cookie),
        offset: 0,
        length: 4096,
    }
}

#[test]
fn a_batch_has_few_reads_or_one_large_one() {
    let mut batch = disk::Batch::default();
    assert!(!batch.is_full_for(32 << 20));
    batch.push(request(0), Segments::new());
    assert!(batch.is_full_for(32 << 20));
    let mut reads = 1;
    while !batch.is_full_for(4096) {
        batch.push(request(reads), Segments::new());
        reads += 1;
    }
    assert_eq!((reads, batch.bytes()), (32, 32 * 4096));
}

#[tokio::test]
async fn what_a_disk_has_yet_to_give_is_not_waited_for() {
    let content: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    let mut written = tempfile::tempfile().unwrap();
    written.write_all(&content).unwrap();
    written.sync_all().unwrap();
    if disk::is_in_memory(written.as_fd()) {
        return;
    }
    let file: Arc<dyn FileBytes> = Arc::new(written);
    for (offset, len) in [(5, 4096), (100_000, SENDFILE_MIN), (1, content.len() as u32 - 1)] {
        let mut outbox = Outbox::default();
        outbox.bytes(b"before");
        let mark = outbox.mark();
        let segment = Segment::File { file: Arc::clone(&file), offset, len };
        // A page that is just being read, for a test of this one before for instance, stays.
        let late = (0..100).any(|_| {
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            outbox.bytes(b"header");
            let refused = outbox.segment(&segment) == Err(Errno::Io);
            assert_eq!(outbox.rollback(&mark), refused, "{offset}, {len}");
            refused
        });
        assert!(late, "{offset}, {len}");
        let mut batch = disk::Batch::default();
        batch.push(request(1), [Segment::Zero(3), segment.clone()].into_iter().collect());
        batch.push(request(2), [segment].into_iter().collect());
        let loaded = batch.load().await;
        assert_eq!(loaded.iter().map(|(request, _)| request.cookie.0).collect::<Vec<_>>(), [1, 2]);
        outbox.begin_read(0, true);
        let segments = loaded.into_iter().flat_map(|(_, segments)| segments.unwrap());
        segments.for_each(|segment| outbox.segment(&segment).unwrap());
        assert!(!outbox.rollback(&outbox.mark()), "it was late once");
        let content = &content[offset as usize..][..len as usize];
        let expected = [b"before".as_slice(), &[0; 3], content, content].concat();
        assert!(take(&mut outbox, 70_000) == expected, "{offset}, {len}");
    }
    let mut batch = disk::Batch::default();
    let end = content.len() as u64;
    for offset in [end - 5, end - 6] {
        let segment = Segment::File { file: Arc::clone(&file), offset, len: 6 };
        batch.push(request(offset), [segment].into_iter().collect());
    }
    let loaded = batch.load().await;
    let error = loaded[0].1.as_ref().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(loaded[1].1.is_ok(), "one that fails is no other's affair");
}

#[test]
fn what_a_file_does_not_give_comes_from_elsewhere() {
    let len = SENDFILE_MIN * 2;
    let mut outbox = Outbox::default();
    outbox.begin_read(5000, false);
    outbox.bytes(b"header");
    outbox.segment(&Segment::Zero(11)).unwrap();
    outbox.segment(&Segment::File { file: file(&vec![7; len as usize]), offset: 0, len }).unwrap();
    outbox.bytes(b"next");
    assert_eq!(outbox.pending(), 6 + 11 + u64::from(len) + 4);
    outbox.advance(17);
    assert!(matches!(outbox.next(), Some(Next::File { .. })));
    assert_eq!(outbox.broken(), None);
    outbox.advance(9);
    outbox.break_off();
    assert!(outbox.next().is_none(), "nothing overtakes it");
    assert_eq!(outbox.broken(), Some((5020, len - 9)));
    outbox.mend(Bytes::from(vec![8; len as usize - 9]));
    assert_eq!(outbox.broken(), None);
    let rest = take(&mut outbox, 1000);
    assert!(rest == [vec![8; len as usize - 9], b"next".to_vec()].concat());
}

#[test]
fn memory_is_given_back_when_it_has_been_sent() {
    let memory = Arc::new(tokio::sync::Semaphore::new(10));
    let mut outbox = Outbox::default();
    outbox.segment(&Segment::Bytes(Bytes::from(vec![1; 10_000]))).unwrap();
    outbox.release_after(Arc::clone(&memory).try_acquire_many_owned(10).unwrap());
    outbox.bytes(b"next");
    outbox.advance(9_999);
    assert_eq!(memory.available_permits(), 0);
    outbox.advance(1);
    // The permit behind the last byte goes with the part before it.
    assert_eq!(memory.available_permits(), 10);
    assert_eq!(take(&mut outbox, 100), b"next");
    outbox.release_after(Arc::clone(&memory).try_acquire_many_owned(10).unwrap());
    assert_eq!(memory.available_permits(), 10, "nothing waits, so that nothing is held");
}
