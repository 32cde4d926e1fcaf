use super::*;

fn trace(size: u64, touches: &[(u64, u64, u64)]) -> Trace {
    let touches = touches.iter().map(|&(after, start, len)| Touch { after, start, len }).collect();
    Trace { size, touches }
}

#[test]
fn what_is_written_is_read() {
    for trace in
        [trace(0, &[]), trace(1 << 40, &[(0, 0, 4096), (7, 1 << 39, 1 << 20), (9, (1 << 40) - 1, 1)])]
    {
        assert_eq!(Trace::parse(&trace.text()), Ok(trace));
    }
}

#[test]
fn what_is_no_trace_is_refused_by_its_line() {
    let head = "thinorigin trace 1\nsize 1000\n";
    for (text, line) in [
        (String::new(), "first line"),
        ("<html>log in</html>".to_owned(), "first line"),
        ("thinorigin trace 2\nsize 1000\n".to_owned(), "first line"),
        ("thinorigin trace 1\nsize -1\n".to_owned(), "second line"),
        ("thinorigin trace 1\n".to_owned(), "second line"),
        (format!("{head}0 0 512\n0 0\n"), "line 4"),
        (format!("{head}0 0 512 1\n"), "line 3"),
        (format!("{head}0 0 0\n"), "line 3"),
        (format!("{head}0 999 2\n"), "line 3"),
        (format!("{head}0 18446744073709551615 2\n"), "line 3"),
        (format!("{head}+0 0 512\n"), "line 3"),
    ] {
        let error = Trace::parse(&text).unwrap_err();
        assert!(error.contains(line), "{text:?}: {error}");
    }
}

#[test]
fn a_plan_has_every_block_once_and_what_is_first_early() {
    const BLOCK: u64 = 64 << 10;
    let size = 100 * BLOCK + 5;
    let touches: Vec<_> =
        [50, 51, 3, 4, 52, 50, 99, 100, 2].iter().map(|block| (0, block * BLOCK, 5)).collect();
    let plan = trace(size, &touches).plan(size, BLOCK);
    let blocks = |range: Range<u64>| range.start * BLOCK..(range.end * BLOCK).min(size);
    // The first four blocks go first, in the order of the disk.
    assert_eq!(plan, [3..5, 50..52, 2..3, 52..53, 99..101].map(blocks));

    let long = trace(1 << 30, &[(0, 4096, 100 << 20)]).plan(1 << 30, BLOCK);
    assert_eq!(long.first(), Some(&(0..4 * BLOCK)));
    assert!(long.len() < 10, "{} ranges", long.len());
    // A disk that is smaller than the traced one was.
    let smaller = trace(1 << 30, &[(0, 0, 4096), (0, 1 << 29, 4096)]).plan(10_000, BLOCK);
    assert!(smaller.len() == 1 && smaller[0] == (0..10_000));
    assert!(trace(0, &[]).plan(0, BLOCK).is_empty());
}

#[tokio::test]
async fn first_readings_are_written_down_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("boot.trace");
    let recorder = Recorder::begin(path.clone(), 1_000_000).unwrap();
    for (start, len) in [(0, 512), (4096, 4096), (500_000, 100), (0, 8192), (999_000, 1000), (512, 1)] {
        recorder.note(start, len);
    }
    drop(recorder);
    let read = Trace::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let places: Vec<_> = read.touches.iter().map(|touch| (touch.start, touch.len)).collect();
    assert_eq!(places, [(0, 8192), (499_712, 4096), (995_328, 4672)]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");

    let location = Location::from_path(&path);
    let plan = async || plan_at(&location, &backends::Options::default(), 1_000_000).await;
    assert_eq!(plan().await.unwrap(), [0..65_536, 458_752..524_288, 983_040..1_000_000]);
    for bytes in
        [vec![b' '; MAX_LEN as usize + 1], b"thinorigin trace 1\nsize 9\n\xff".to_vec(), vec![0; 5000]]
    {
        std::fs::write(&path, bytes).unwrap();
        let error = plan().await.unwrap_err();
        assert!(error.message.contains("boot.trace: not a trace"), "{error}");
    }
}

#[test]
fn a_plan_takes_steps_for_lines_whatever_they_name() {
    const BLOCK: u64 = 64 << 10;
    // The largest disk there can be, all of it again and again: each line once is what this takes.
    let size = u64::MAX;
    let whole = trace(size, &vec![(0, 0, size); MAX_TOUCHES]);
    let plan = whole.plan(size, BLOCK);
    assert!(plan.len() < 10, "{} ranges", plan.len());
    assert_eq!(plan.last().map(|range| range.end), Some(size));
    // Every other block of it, and then again all.
    let mut touches: Vec<_> = (0..1000).map(|n| (0, n * 2 * BLOCK, 1)).collect();
    touches.extend([(0, 0, size), (0, 1, size - 1), (0, 0, 1000 * BLOCK)]);
    let plan = trace(size, &touches).plan(size, BLOCK);
    assert!(plan.len() < 2 * touches.len(), "{} ranges", plan.len());
    let mut sorted = plan;
    sorted.sort_unstable_by_key(|range| range.start);
    assert!(sorted.windows(2).all(|pair| pair[0].end == pair[1].start), "each block once");
    assert_eq!((sorted[0].start, sorted[sorted.len() - 1].end), (0, size));
}

#[test]
fn a_trace_of_too_many_lines_is_refused() {
    let text = |lines| format!("{MAGIC}\nsize 9\n{}", "0 0 9\n".repeat(lines));
    assert!(Trace::parse(&text(MAX_TOUCHES)).is_ok());
    let error = Trace::parse(&text(MAX_TOUCHES + 1)).unwrap_err();
    assert!(error.contains("400000"), "{error}");
}
