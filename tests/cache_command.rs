//! `thinorigin cache`: what it lists is what is there, damage is found, and nothing is dropped under a server.

mod common;

use common::{Dir, Http, Server, THINORIGIN, assert_same_bytes, has, run, text};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

const TOOLS: [&str; 3] = ["nginx", "setsid", "nbdcopy"];

/// A cache with all of a raw image in it, and where the image is.
fn warm(dir: &Dir, http: &Http) -> (String, String) {
    dir.guest_disk("disk.raw");
    let (cache, location) = (text(&dir.join("cache")).to_owned(), format!("{}/disk.raw", http.url));
    run(THINORIGIN, &["warm", "--cache", &cache, &location]);
    (cache, location)
}

fn json(arguments: &[&str]) -> serde_json::Value {
    serde_json::from_slice(&run(THINORIGIN, arguments).stdout).unwrap()
}

#[test]
fn lists_and_sums_up_and_drops() {
    if !has("lists_and_sums_up_and_drops", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let http = Http::start(&dir);
    let (cache, location) = warm(&dir, &http);
    let size = fs::metadata(dir.join("disk.raw")).unwrap().len();
    let list = json(&["cache", "list", "--json", "--cache", &cache]);
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!((&list[0]["location"], &list[0]["part"]), (&location.as_str().into(), &"raw".into()));
    assert_eq!((&list[0]["size"], &list[0]["local"]), (&size.into(), &size.into()));
    let usage = json(&["cache", "usage", "--json", "--cache", &cache]);
    assert_eq!((&usage[0]["location"], &usage[0]["local"]), (&location.as_str().into(), &size.into()));
    let table = run(THINORIGIN, &["cache", "list", "--cache", &cache]).stdout;
    assert!(String::from_utf8(table).unwrap().contains("100 %"));

    // A server that uses the cache would go on with files that are gone.
    let server = Server::start(&dir, &["--cache", &cache, &location]);
    let refused = Command::new(THINORIGIN).args(["cache", "drop", "--cache", &cache, &location]).output();
    let refused = refused.unwrap();
    assert_eq!(refused.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("a running server uses the cache"));
    let seen = json(&["cache", "list", "--json", "--cache", &cache]);
    assert_eq!(seen[0]["local"], list[0]["local"], "looking is allowed");
    server.terminate();

    let other = Command::new(THINORIGIN).args(["cache", "drop", "--cache", &cache, "/elsewhere"]).status();
    assert_eq!(other.unwrap().code(), Some(3));
    let dropped = json(&["cache", "drop", "--json", "--cache", &cache, &location]);
    assert_eq!(dropped["objects"], 1);
    assert_eq!(json(&["cache", "list", "--json", "--cache", &cache]), serde_json::json!([]));
    // What was dropped is fetched again.
    let before = http.bytes_sent();
    run(THINORIGIN, &["cat", "--cache", &cache, &location]);
    assert!(http.bytes_sent() - before >= size);
}

/// Of each location the objects, bytes that are local and bytes on disk, as `list` has them.
fn sums(list: &serde_json::Value) -> BTreeMap<String, [u64; 3]> {
    let mut sums: BTreeMap<String, [u64; 3]> = BTreeMap::new();
    for object in list.as_array().unwrap() {
        let sum = sums.entry(object["location"].as_str().unwrap().to_owned()).or_default();
        let more = [1, object["local"].as_u64().unwrap(), object["disk"].as_u64().unwrap()];
        (0..3).for_each(|n| sum[n] += more[n]);
    }
    sums
}

#[test]
fn usage_is_the_sum_of_what_is_raw_and_what_is_decoded_of_each_file() {
    let tools = ["nginx", "setsid", "qemu-img", "qemu-io"];
    if !has("usage_is_the_sum_of_what_is_raw_and_what_is_decoded_of_each_file", &tools) {
        return;
    }
    let dir = Dir::new();
    let http = Http::start(&dir);
    let raw = dir.guest_disk("disk.raw");
    run(
        "qemu-img",
        &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&dir.join("base.qcow2"))],
    );
    let top = dir.join("top.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", text(&top)]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 7 1M 300K", text(&top)]);
    let cache = text(&dir.join("cache")).to_owned();
    let locations = ["disk.raw", "base.qcow2", "top.qcow2"].map(|name| format!("{}/{name}", http.url));
    for location in [&locations[0], &locations[2]] {
        run(THINORIGIN, &["warm", "--cache", &cache, location]);
    }

    let list = json(&["cache", "list", "--json", "--cache", &cache]);
    let sums = sums(&list);
    let objects = |location: &String| sums[location][0];
    // A raw disk is there once. What is compressed is there decoded, beside the tables of its file.
    assert_eq!((sums.len(), objects(&locations[0]), objects(&locations[1])), (3, 1, 2), "{list}");
    let local = |location: &String| sums[location][1];
    assert!(local(&locations[1]) > local(&locations[2]), "{list}");
    assert!(sums.values().all(|[_, local, disk]| *local > 0 && *disk > 0), "{list}");

    let usage = json(&["cache", "usage", "--json", "--cache", &cache]);
    let told: BTreeMap<String, [u64; 3]> = usage
        .as_array()
        .unwrap()
        .iter()
        .map(|usage| {
            let numbers = ["objects", "local", "disk"].map(|name| usage[name].as_u64().unwrap());
            (usage["location"].as_str().unwrap().to_owned(), numbers)
        })
        .collect();
    assert_eq!((told.len(), &told), (usage.as_array().unwrap().len(), &sums), "each location once");
    let table = String::from_utf8(run(THINORIGIN, &["cache", "usage", "--cache", &cache]).stdout).unwrap();
    // A heading, the locations, and what they take together.
    assert_eq!(table.lines().count(), 1 + 3 + 1, "{table}");
}

#[test]
fn what_lies_on_a_local_disk_as_it_is_leaves_nothing_in_the_cache() {
    if !has("what_lies_on_a_local_disk_as_it_is_leaves_nothing_in_the_cache", &["nbdcopy"]) {
        return;
    }
    let dir = Dir::new();
    let image = dir.guest_disk("disk.raw");
    let (cache, copy) = (text(&dir.join("cache")).to_owned(), dir.join("copy"));
    let server = Server::start(&dir, &["--cache", &cache, "--prefetch", text(&image)]);
    run("nbdcopy", &[&server.uri(""), text(&copy)]);
    server.terminate();
    let wanted = fs::read(&image).unwrap();
    assert_same_bytes("what is served", &fs::read(copy).unwrap()[..wanted.len()], &wanted);
    assert_eq!(json(&["cache", "list", "--json", "--cache", &cache]), serde_json::json!([]));
    let objects = fs::read_dir(dir.join("cache/objects")).map_or(0, Iterator::count);
    assert_eq!(objects, 0, "not even what is not listed");
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let dir = Dir::new();
    let mistyped = text(&dir.join("cahce")).to_owned();
    for command in ["list", "usage", "verify"] {
        let said = run(THINORIGIN, &["cache", command, "--cache", &mistyped]).stderr;
        assert!(String::from_utf8_lossy(&said).contains(&mistyped), "{command}");
    }
    fs::create_dir(&mistyped).unwrap();
    let said = run(THINORIGIN, &["cache", "list", "--cache", &mistyped]).stderr;
    assert!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn finds_what_the_disk_has_changed() {
    if !has("finds_what_the_disk_has_changed", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let http = Http::start(&dir);
    let (cache, location) = warm(&dir, &http);
    let wanted = fs::read(dir.join("disk.raw")).unwrap();
    let whole = json(&["cache", "verify", "--json", "--cache", &cache]);
    assert_eq!((&whole["whole"], &whole["damaged"]), (&wanted.len().into(), &serde_json::json!([])));

    let object = fs::read_dir(dir.join("cache/objects")).unwrap().next().unwrap().unwrap();
    let data = fs::File::options().write(true).open(object.path().join("data")).unwrap();
    data.write_all_at(&[!wanted[100_000]], 100_000).unwrap();
    let found = Command::new(THINORIGIN).args(["cache", "verify", "--json", "--cache", &cache]).output();
    let found = found.unwrap();
    assert_eq!(found.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(
        (&report["damaged"][0]["start"], &report["damaged"][0]["length"]),
        (&65536.into(), &65536.into())
    );
    let read = run(THINORIGIN, &["cat", "--cache", &cache, &location]).stdout;
    assert!(read == wanted, "a reader does not see the damage");
    let healed = json(&["cache", "verify", "--json", "--cache", &cache]);
    assert_eq!(healed["damaged"], serde_json::json!([]), "and has mended it");
}

#[test]
fn warming_says_what_did_not_become_local() {
    if !has("warming_says_what_did_not_become_local", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let http = Http::start(&dir);
    dir.guest_disk("disk.raw");
    let (cache, location) = (text(&dir.join("cache")).to_owned(), format!("{}/disk.raw", http.url));
    let failing = |arguments: &[&str]| {
        let output = Command::new(THINORIGIN).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, error) = failing(&["warm", "--cache", &cache, "--cache-size", "1M", &location]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("the cache has no room for"), "{error}");
    let (code, error) = failing(&["warm", "--no-cache", &location]);
    assert_eq!(code, Some(2), "{error}");
    let server = Server::start(&dir, &["--cache", &cache, &location]);
    // What is local already needs no cache, whoever owns it.
    let local = json(&["warm", "--json", "--cache", &cache, text(&dir.join("disk.raw"))]);
    assert_eq!(local["data"], local["local"]);
    let (code, error) = failing(&["warm", "--cache", &cache, &location]);
    assert_eq!(code, Some(3), "{error}");
    assert!(error.contains("another process owns this cache"), "{error}");
    server.terminate();
}
