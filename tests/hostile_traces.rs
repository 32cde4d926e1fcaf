//! Traces that are published beside an image come from a server that may mean no good, or that answers everything with a page.

mod common;

use common::nbd::Nbd;
use common::{Dir, Http, Server, THINORIGIN, becomes_true, has, run, text};
use serde_json::Value;
use std::fs;

const TOOLS: [&str; 4] = ["nginx", "setsid", "qemu-img", "qemu-io"];

/// The size of the disk, which is nearly empty.
const SIZE: u64 = 8 << 40;

/// An image of a disk of [`SIZE`] bytes in `dir`, with a MiB of data at its beginning.
fn image(dir: &Dir) {
    let image = dir.join("disk.qcow2");
    run("qemu-img", &["create", "-f", "qcow2", text(&image), &SIZE.to_string()]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 1M", text(&image)]);
}

/// How much of the disk's data a server says is local.
fn local(admin: &str) -> u64 {
    let output = run(THINORIGIN, &["exports", "--json", "--admin", admin]);
    let exports: Value = serde_json::from_slice(&output.stdout).unwrap();
    exports[0]["progress"]["local"].as_u64().unwrap_or(0)
}

#[test]
fn a_trace_that_names_all_of_a_huge_disk_again_and_again_keeps_nobody_busy() {
    if !has("a_trace_that_names_all_of_a_huge_disk_again_and_again_keeps_nobody_busy", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    image(&dir);
    let line = format!("0 0 {SIZE}\n");
    fs::write(
        dir.join("disk.qcow2.trace"),
        format!("thinorigin trace 1\nsize {SIZE}\n{}", line.repeat(400_000)),
    )
    .unwrap();
    let http = Http::start(&dir);
    let (location, cache) = (format!("{}/disk.qcow2", http.url), dir.join("cache"));
    let admin = format!("unix:{}", text(&dir.join("admin.sock")));
    let options = ["--cache", text(&cache), "--admin", &admin, &location];
    let server = Server::start(&dir, &options);
    let mut client = Nbd::connect(&server.socket).unwrap();
    // Nothing of this is local, and the trace is being read.
    assert_eq!(client.read(SIZE - 4096, 4096).unwrap().unwrap(), vec![0; 4096]);
    becomes_true("what the trace names is here", || local(&admin) == 1 << 20);
    becomes_true("the trace is too much", || server.log().contains("it names more than"));
    server.terminate();
}

#[test]
fn what_is_no_trace_is_passed_over_with_a_warning() {
    if !has("what_is_no_trace_is_passed_over_with_a_warning", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    image(&dir);
    let http = Http::start(&dir);
    let location = format!("{}/disk.qcow2", http.url);
    let published = dir.join("disk.qcow2.trace");
    let head = format!("thinorigin trace 1\nsize {SIZE}\n");
    let cases: [(&str, Vec<u8>, &str); 7] = [
        ("a page", b"<html>not found</html>".to_vec(), "its first line is not"),
        ("binary", (0..=255).cycle().take(100_000).collect(), "not UTF-8"),
        ("cut in a line", format!("{head}0 0 4096\n7 81").into_bytes(), "line 4 is not a part"),
        ("cut in its head", b"thinorigin trace 1\nsi".to_vec(), "its second line is not"),
        ("overflowing", format!("{head}0 18446744073709551615 2\n").into_bytes(), "line 3 is not a part"),
        ("too large a number", format!("{head}0 0 18446744073709551616\n").into_bytes(), "line 3 is not"),
        ("past its own end", format!("{head}0 {SIZE} 1\n").into_bytes(), "line 3 is not a part"),
    ];
    for (number, (what, bytes, wanted)) in cases.into_iter().enumerate() {
        fs::write(&published, bytes).unwrap();
        let cache = dir.join(&format!("cache{number}"));
        let server = Server::start(&dir, &["--cache", text(&cache), &location]);
        becomes_true(what, || server.log().contains("WARN") && server.log().contains(wanted));
        let mut client = Nbd::connect(&server.socket).unwrap();
        assert_eq!(client.read(4096, 4096).unwrap().unwrap(), vec![7; 4096], "{what}");
        server.terminate();
    }
    // Of a larger disk: what the image's own has is fetched, the rest is not.
    fs::write(&published, format!("thinorigin trace 1\nsize {0}\n0 0 4096\n1 {SIZE} {SIZE}\n", SIZE * 2))
        .unwrap();
    let admin = format!("unix:{}", text(&dir.join("admin.sock")));
    let server = Server::start(&dir, &["--cache", text(&dir.join("larger")), "--admin", &admin, &location]);
    becomes_true("a larger disk", || server.log().contains("is passed over"));
    becomes_true("the part that there is", || local(&admin) >= 64 << 10);
    assert!(local(&admin) < 1 << 20);
    server.terminate();
    // And where there is none, nothing is said.
    fs::remove_file(&published).unwrap();
    let none = dir.join("none");
    let server = Server::start_in(&dir, &[("THINORIGIN_LOG", "debug")], &["--cache", text(&none), &location]);
    becomes_true("it was looked for", || server.log().contains("no trace"));
    assert!(!server.log().contains("WARN"), "{}", server.log());
    server.terminate();
}
