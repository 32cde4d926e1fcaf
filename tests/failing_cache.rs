//! What goes wrong with the cache's files is no error to a reader: the bytes come from the server then.

mod common;

use common::{Dir, Http, Server, THINORIGIN, assert_same_bytes, becomes_true, has, run, text};
use std::fs;
use std::path::{Path, PathBuf};

const TOOLS: [&str; 4] = ["nginx", "setsid", "nbdcopy", "qemu-img"];

/// Every file called `name` of the store in `cache`.
fn files(cache: &Path, name: &str) -> Vec<PathBuf> {
    let objects = fs::read_dir(cache.join("objects")).unwrap();
    objects.map(|object| object.unwrap().path().join(name)).filter(|file| file.exists()).collect()
}

/// Something that happens to the files of a store.
type Mishap = (&'static str, fn(&Path));

/// What may happen to them while a server uses them.
const UNDER_WAY: [Mishap; 4] = [
    ("nothing", |_| {}),
    ("data is cut off", |cache| {
        for file in files(cache, "data") {
            fs::File::options().write(true).open(file).unwrap().set_len(100_000).unwrap();
        }
    }),
    ("the index is gone", |cache| {
        files(cache, "index").iter().for_each(|file| fs::remove_file(file).unwrap());
    }),
    ("all is gone", |cache| fs::remove_dir_all(cache.join("objects")).unwrap()),
];

/// What may have happened to them when a server starts.
const BEFORE: [Mishap; 4] = [
    ("data is something else", |cache| {
        for file in files(cache, "data") {
            let len = fs::metadata(&file).unwrap().len() as usize;
            fs::write(file, vec![0xee; len]).unwrap();
        }
    }),
    ("the index is something else", |cache| {
        files(cache, "index").iter().for_each(|file| fs::write(file, vec![0xee; 10_000]).unwrap());
    }),
    ("meta is something else", |cache| {
        files(cache, "meta").iter().for_each(|file| fs::write(file, "{}").unwrap());
    }),
    ("data is a directory", |cache| {
        for file in files(cache, "data") {
            fs::remove_file(&file).unwrap();
            fs::create_dir(&file).unwrap();
        }
    }),
];

#[test]
fn a_reader_does_not_notice_what_happens_to_the_cache() {
    if !has("a_reader_does_not_notice_what_happens_to_the_cache", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let raw = dir.guest_disk("disk.raw");
    let packed = dir.join("disk.qcow2");
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&packed)]);
    let wanted = fs::read(raw).unwrap();
    let http = Http::start(&dir);
    let copied = |what: &str, server: &Server| {
        let copy = dir.join("copy");
        // Large requests are sent from the file to the socket, small ones are read first.
        for size in ["4096", "262144"] {
            run("nbdcopy", &["--request-size", size, "--connections", "1", &server.uri(""), text(&copy)]);
            assert_same_bytes(
                &format!("{what}, by {size}"),
                &fs::read(&copy).unwrap()[..wanted.len()],
                &wanted,
            );
        }
    };
    for name in ["disk.raw", "disk.qcow2"] {
        let location = format!("{}/{name}", http.url);
        for (what, happen) in UNDER_WAY {
            let cache = dir.join("cache");
            let server = Server::start(&dir, &["--cache", text(&cache), &location]);
            copied(what, &server);
            happen(&cache);
            copied(what, &server);
            server.terminate();
            let _ = fs::remove_dir_all(&cache);
        }
        for (what, happen) in BEFORE {
            let cache = dir.join("cache");
            run(THINORIGIN, &["warm", "--cache", text(&cache), &location]);
            happen(&cache);
            let server = Server::start(&dir, &["--cache", text(&cache), &location]);
            copied(what, &server);
            server.terminate();
            fs::remove_dir_all(&cache).unwrap();
        }
    }
}

#[test]
fn what_another_version_or_program_left_is_neither_used_nor_kept() {
    if !has("what_another_version_or_program_left_is_neither_used_nor_kept", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let (raw, other) = (dir.guest_disk("disk.raw"), dir.guest_disk("other.raw"));
    let wanted = fs::read(&raw).unwrap();
    let http = Http::start(&dir);
    let cache = dir.join("cache");
    let location = |file: &Path| format!("{}/{}", http.url, file.file_name().unwrap().to_str().unwrap());
    let list =
        || String::from_utf8(run(THINORIGIN, &["cache", "list", "--cache", text(&cache)]).stdout).unwrap();
    for (from, to) in [("\"version\":1", "\"version\":2"), ("thinorigin cache", "thinorigin cashe")] {
        for image in [&raw, &other] {
            run(THINORIGIN, &["warm", "--cache", text(&cache), &location(image)]);
        }
        assert!(list().contains("disk.raw") && list().contains("other.raw"), "{}", list());
        for meta in files(&cache, "meta") {
            let text = fs::read_to_string(&meta).unwrap();
            assert!(text.contains(from), "{text}");
            fs::write(&meta, text.replace(from, to)).unwrap();
            // Whatever it is that such an object consists of.
            fs::write(meta.with_file_name("more"), "more").unwrap();
        }
        assert!(!list().contains(".raw"), "{}", list());

        let before = http.bytes_sent();
        let server = Server::start(&dir, &["--cache", text(&cache), &location(&raw)]);
        let copy = dir.join("copy");
        run("nbdcopy", &[&server.uri(""), text(&copy)]);
        assert_same_bytes(to, &fs::read(&copy).unwrap()[..wanted.len()], &wanted);
        server.terminate();
        assert!(http.bytes_sent() - before >= wanted.len() as u64, "{to}: it is fetched again");
        assert!(list().contains("disk.raw"), "{}", list());
        let left = files(&cache, "more").len();
        assert_eq!(left, 1, "{to}: of what nobody asked for, and of nothing else, something is left");

        // That goes when there is room for one image only, of which zeros take none.
        let limited = ["--cache", text(&cache), "--cache-size", "4M", &location(&raw)];
        let server = Server::start(&dir, &limited);
        let objects = || fs::read_dir(cache.join("objects")).unwrap().count();
        becomes_true("what is left is evicted", || files(&cache, "more").is_empty() && objects() == 1);
        server.terminate();
        assert_eq!(objects(), 1, "{to}");
        assert!(list().contains("100 %"), "{}", list());
        fs::remove_dir_all(&cache).unwrap();
    }
}
