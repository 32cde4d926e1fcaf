use super::*;
use std::io::{Seek, Write};
use std::os::unix::fs::symlink;
use std::path::Path;

fn open(path: &Path) -> Result<FileSource, Error> {
    FileSource::open_now(&Location::from_path(path))
}

#[tokio::test]
async fn reads_are_exact_and_ranges_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.img");
    let data: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&path, &data).unwrap();
    let source = FileSource::open(&Location::from_path(&path)).await.unwrap();
    assert_eq!(source.len(), 100_000);
    for range in [0..1, 0..100_000, 99_999..100_000, 4095..4097, 5..5, 100_000..100_000] {
        let expect = &data[range.start as usize..range.end as usize];
        assert_eq!(source.read(range).await.unwrap(), expect);
    }
    for range in [0..100_001, 100_000..100_001, u64::MAX - 1..u64::MAX] {
        assert_eq!(source.read(range).await.unwrap_err().kind, Kind::Range);
    }
    #[expect(clippy::reversed_empty_ranges, reason = "a range that ends before it starts is what is tried")]
    let reversed = 7..5;
    assert_eq!(source.read(reversed).await.unwrap_err().kind, Kind::Range);
}

#[test]
fn what_the_page_cache_holds_is_read_up_to_the_end_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.img");
    let data: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&path, &data).unwrap();
    let source = open(&path).unwrap();
    let mut buffer = vec![0; 20_000];
    for (offset, most) in [(0, 20_000), (77_777, 20_000), (90_000, 10_000), (100_000, 0), (u64::MAX >> 1, 0)]
    {
        let read = source.read_resident(&mut buffer, offset);
        // What was just written may have left the page cache, and a file system may not be able to tell.
        assert!(read <= most, "{read} bytes at {offset}");
        if read > 0 {
            assert_eq!(buffer[..read], data[offset as usize..][..read]);
        }
    }
}

#[tokio::test]
async fn a_change_is_final() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.img");
    std::fs::write(&path, b"one").unwrap();
    let source = open(&path).unwrap();
    assert_eq!(source.read(0..3).await.unwrap(), "one");
    let times = std::fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    let mut file = File::options().write(true).open(&path).unwrap();
    file.write_all(b"two").unwrap();
    file.set_times(times).unwrap();
    assert_eq!(source.read(0..3).await.unwrap_err().kind, Kind::Changed);
    // Even if the file is made to look as before.
    file.rewind().unwrap();
    file.write_all(b"one").unwrap();
    assert_eq!(source.read(0..3).await.unwrap_err().kind, Kind::Changed);
    assert_ne!(open(&path).unwrap().identity(), source.identity());
}

#[test]
fn a_look_that_is_not_always_taken_shows_a_change_soon_and_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.img");
    std::fs::write(&path, b"one").unwrap();
    let source = open(&path).unwrap();
    std::thread::sleep(FRESH);
    source.check_now_and_then().unwrap();
    let mut file = File::options().write(true).open(&path).unwrap();
    file.write_all(b"three").unwrap();
    let changed = Instant::now();
    while source.check_now_and_then().is_ok() {
        assert!(changed.elapsed() < Duration::from_secs(1), "nobody looks");
    }
    file.set_len(3).unwrap();
    assert_eq!(source.check_now_and_then().unwrap_err().kind, Kind::Changed);
}

#[tokio::test]
async fn a_replaced_file_goes_on_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.img");
    std::fs::write(&path, b"one").unwrap();
    let source = open(&path).unwrap();
    std::fs::write(dir.path().join("b"), b"two").unwrap();
    std::fs::rename(dir.path().join("b"), &path).unwrap();
    assert_eq!(source.read(0..3).await.unwrap(), "one");
    assert_ne!(open(&path).unwrap().identity(), source.identity());
}

#[test]
fn what_has_no_bytes_at_offsets_is_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(open(dir.path()).unwrap_err().kind, Kind::Unsupported);
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
    assert_eq!(open(&fifo).unwrap_err().kind, Kind::Unsupported);
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(open(&socket).unwrap_err().message.contains("socket"));
    assert_eq!(open(Path::new("/dev/null")).unwrap_err().kind, Kind::Unsupported);
    let missing = open(&dir.path().join("none")).unwrap_err();
    assert_eq!(missing.kind, Kind::NotFound);
    assert!(missing.message.ends_with("none: cannot be opened: no such file"), "{}", missing.message);
}

#[test]
fn siblings_do_not_leave_their_directory() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("images");
    std::fs::create_dir_all(inside.join("sub")).unwrap();
    std::fs::write(dir.path().join("secret"), "s").unwrap();
    std::fs::write(inside.join("base"), "b").unwrap();
    std::fs::write(inside.join("sub/base"), "b").unwrap();
    symlink("../secret", inside.join("out")).unwrap();
    symlink("..", inside.join("up")).unwrap();
    symlink(dir.path().join("images/base"), inside.join("absolute")).unwrap();
    symlink("base", inside.join("in")).unwrap();
    let top = Location::from_path(inside.join("top"));
    let kind = |name: &str| FileSource::open_now(&top.sibling(name).unwrap()).map(|_| ()).map_err(|e| e.kind);
    for name in ["base", "sub/base", "./base", "in"] {
        assert_eq!(kind(name), Ok(()), "{name}");
    }
    for name in ["out", "up/secret", "absolute"] {
        assert_eq!(kind(name), Err(Kind::Denied), "{name}");
    }
    assert_eq!(kind("none"), Err(Kind::NotFound));
    // The same through the walk that old kernels need, which follows no links at all.
    let walk = |name: &str| {
        let directory = rustix::fs::open(&inside, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        beneath::step_by_step(directory, Path::new(name), FLAGS).map(|_| ())
    };
    assert_eq!((walk("base"), walk("sub/base")), (Ok(()), Ok(())));
    for name in ["out", "up/secret", "absolute", "in"] {
        assert!(matches!(walk(name), Err(Errno::LOOP | Errno::NOTDIR)), "{name}");
    }
    assert_eq!(walk("../secret"), Err(Errno::XDEV));
}

#[test]
fn holes_are_told_from_data() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(4 << 20).unwrap();
    rustix::io::pwrite(&file, &[1; 65536], 1 << 20).unwrap();
    let source = open(&path).unwrap();
    assert_eq!(source.extent(0), (false, 1 << 20));
    assert_eq!(source.extent(1 << 20), (true, (1 << 20) + 65536));
    assert_eq!(source.extent((1 << 20) + 65536), (false, 4 << 20));
}
