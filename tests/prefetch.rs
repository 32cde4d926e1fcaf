//! Bringing images to this machine before somebody asks: traces, fetching in the background, and what a complete copy is
//! good for.

mod common;

use common::{Dir, Http, Server, THINORIGIN, assert_same_bytes, becomes_true, has, oracle, run, text};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TOOLS: [&str; 4] = ["nginx", "setsid", "nbdcopy", "qemu-img"];

/// A compressed image in `dir`, and its guest's bytes.
fn image(dir: &Dir) -> (PathBuf, Vec<u8>) {
    let (raw, image) = (dir.guest_disk("disk.raw"), dir.join("disk.qcow2"));
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&image)]);
    let wanted = oracle(&image, "qcow2");
    (image, wanted)
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_slice(&run(THINORIGIN, arguments).stdout).unwrap()
}

/// Reads `len` bytes at each of `places`, one after the other.
fn read(uri: &str, places: &[(u64, u64)]) {
    let mut command = Command::new("qemu-io");
    command.args(["-r", "-f", "raw"]);
    for (at, len) in places {
        command.args(["-c", &format!("read {at} {len}")]);
    }
    let output = command.arg(uri).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !said.contains("failed"), "{said}");
}

/// The readings in a trace: offset and length.
fn touches(trace: &Path) -> Vec<(u64, u64)> {
    let text = fs::read_to_string(trace).unwrap();
    let numbers = |line: &str| line.split(' ').map(|number| number.parse().unwrap()).collect::<Vec<u64>>();
    text.lines().skip(2).map(|line| (numbers(line)[1], numbers(line)[2])).collect()
}

#[test]
fn a_trace_of_one_boot_brings_what_the_next_one_reads() {
    if !has("a_trace_of_one_boot_brings_what_the_next_one_reads", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let (_, wanted) = image(&dir);
    let http = Http::start(&dir);
    let location = format!("{}/disk.qcow2", http.url);
    let trace = dir.join("boot.trace");
    let places = [(4 << 20, 200_000), (0, 65_536), (6 << 20, 4096)];
    let server = Server::start(&dir, &["--no-cache", "--record-trace", text(&trace), &location]);
    read(&server.uri(""), &places);
    server.terminate();
    let noted = touches(&trace);
    let covers =
        |place: &(u64, u64)| noted.iter().any(|(at, len)| *at <= place.0 && place.0 + place.1 <= at + len);
    assert!(places.iter().all(covers), "{noted:?}");
    let total: u64 = noted.iter().map(|(_, len)| len).sum();
    assert!(total < 1 << 20, "only what was read: {noted:?}");

    // Into the cache by a command, in the background, and from beside the image: the same readings then need no server.
    let published = dir.join("disk.qcow2.trace");
    for (number, how) in ["warm", "--prefetch-trace", "published"].into_iter().enumerate() {
        let cache = dir.join(&format!("cache{number}"));
        let mut arguments = vec!["--cache", text(&cache)];
        match how {
            "warm" => {
                let said =
                    run(THINORIGIN, &["warm", "--cache", text(&cache), "--trace", text(&trace), &location]);
                assert!(String::from_utf8_lossy(&said.stdout).contains("are local"));
            }
            "published" => drop(fs::copy(&trace, &published).unwrap()),
            _ => arguments.extend([how, text(&trace)]),
        }
        arguments.push(&location);
        let server = Server::start(&dir, &arguments);
        let decoded = || {
            let objects = json(&["cache", "list", "--json", "--cache", text(&cache)]);
            let parts = objects.as_array().unwrap().clone();
            let decoded = parts.iter().find(|object| object["part"].as_str().unwrap().starts_with("decoded"));
            decoded.map_or(0, |object| object["local"].as_u64().unwrap())
        };
        becomes_true(how, || decoded() >= total);
        assert!(decoded() < total + (1 << 20), "{how}: {} bytes of {total}", decoded());
        http.stop();
        read(&server.uri(""), &places);
        server.terminate();
        http.start_again(&dir);
    }
    // A trace that is none harms nobody.
    fs::write(&published, "<html>not found</html>").unwrap();
    let server = Server::start(&dir, &["--cache", text(&dir.join("other")), &location]);
    run("nbdcopy", &[&server.uri(""), text(&dir.join("copy"))]);
    assert_same_bytes("beside a bad trace", &fs::read(dir.join("copy")).unwrap()[..wanted.len()], &wanted);
    server.terminate();
    let output = Command::new(THINORIGIN)
        .args(["warm", "--cache", text(&dir.join("other")), "--trace", text(&published), &location])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("not a trace: its first line"), "{said}");
}

#[test]
fn an_image_is_brought_here_whole_and_then_needs_no_server() {
    if !has("an_image_is_brought_here_whole_and_then_needs_no_server", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let (image, wanted) = image(&dir);
    let http = Http::start(&dir);
    let (location, cache) = (format!("{}/disk.qcow2", http.url), dir.join("cache"));
    let admin = format!("unix:{}", text(&dir.join("admin.sock")));
    let options = ["--cache", text(&cache), "--admin", &admin];
    let server = Server::start(&dir, &[&options[..], &["--prefetch", &location]].concat());
    let mut progress = Value::Null;
    becomes_true("all is local", || {
        let exports = json(&["exports", "--json", "--admin", &admin]);
        progress = exports[0]["progress"].clone();
        progress["local"] == progress["data"] && progress["data"].as_u64() > Some(1 << 20)
    });
    let table = String::from_utf8(run(THINORIGIN, &["exports", "--admin", &admin]).stdout).unwrap();
    assert!(table.contains("100 %") && table.contains("disk.qcow2"), "{table}");
    // What the server notes once it is through; nobody can see that but by opening again.
    becomes_true("it is marked", || {
        fs::read_dir(cache.join("objects"))
            .unwrap()
            .all(|object| object.unwrap().path().join("complete").exists())
    });
    server.terminate();

    let asked = http.requests();
    let server = Server::start(&dir, &["--cache", text(&cache), &location]);
    run("nbdcopy", &[&server.uri(""), text(&dir.join("copy"))]);
    assert_same_bytes("local", &fs::read(dir.join("copy")).unwrap()[..wanted.len()], &wanted);
    server.terminate();
    assert_eq!(http.requests(), asked, "the server was asked");
    // Unless one wants to know.
    run(THINORIGIN, &["info", "--revalidate", "--cache", text(&cache), &location]);
    becomes_true("the server is asked", || http.requests() > asked);

    // Another image there: the copy is what it was, until somebody wants to know.
    let other = dir.join("other.raw");
    fs::write(&other, &wanted[..1 << 20]).unwrap();
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&other), text(&image)]);
    let size = |extra: &[&str]| {
        let arguments = [&["info", "--json", "--cache", text(&cache), &location][..], extra].concat();
        json(&arguments)["virtual_size"].as_u64().unwrap()
    };
    assert_eq!(size(&[]), wanted.len() as u64);
    assert_eq!(size(&["--revalidate"]), 1 << 20);
}

#[test]
fn a_complete_copy_is_exported_without_a_server() {
    if !has("a_complete_copy_is_exported_without_a_server", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let (_, wanted) = image(&dir);
    let http = Http::start(&dir);
    let (cache, output) = (dir.join("cache"), dir.join("disk.out"));
    for name in ["disk.qcow2", "disk.raw"] {
        let location = format!("{}/{name}", http.url);
        let export = |location: &str| {
            let arguments = ["cache", "export", "--cache", text(&cache), location, text(&output)];
            let output = Command::new(THINORIGIN).args(arguments).output().unwrap();
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        run(THINORIGIN, &["warm", "--cache", text(&cache), "--range", "0-1M", &location]);
        let (code, said) = export(&location);
        assert!(code == Some(3) && said.contains("thinorigin warm"), "{said}");
        assert!(!output.exists());
        run(THINORIGIN, &["warm", "--cache", text(&cache), &location]);
        http.stop();
        let (code, said) = export(&location);
        assert_eq!(code, Some(0), "{said}");
        assert_same_bytes(name, &fs::read(&output).unwrap(), &wanted);
        let (code, said) = export(&location);
        assert!(code == Some(3) && said.contains("exists already"), "{said}");
        fs::remove_file(&output).unwrap();
        http.start_again(&dir);
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("partial")), "{left:?}");
}
