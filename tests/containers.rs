//! Disks inside archives and compressed files, through the programs: read in place, from a file and over HTTP.

mod common;

use common::{Dir, Http, Server, THINORIGIN, assert_same_bytes, has, run, text};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs a command with its output in the file `to`.
fn into_file(to: &Path, program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).stdout(fs::File::create(to).unwrap()).status();
    assert!(status.unwrap().success(), "{program} {arguments:?}");
}

/// What the program says when it refuses.
fn refusal(arguments: &[&str]) -> String {
    let output = Command::new(THINORIGIN).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_disk_in_a_container_is_served_in_place() {
    let tools = ["qemu-img", "nbdcopy", "nginx", "setsid", "tar", "xz", "bgzip", "zstd"];
    if !has("a_disk_in_a_container_is_served_in_place", &tools) {
        return;
    }
    let dir = Dir::new();
    let disk = dir.guest_disk("disk.raw");
    let wanted = fs::read(&disk).unwrap();
    let (vmdk, qcow2) = (dir.join("disk.vmdk"), dir.join("disk.qcow2"));
    let stream = ["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"];
    run("qemu-img", &[&stream[..], &[text(&disk), text(&vmdk)]].concat());
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&disk), text(&qcow2)]);
    fs::write(dir.join("disk.ovf"), "<Envelope/>").unwrap();
    let parent = text(dir.path());
    run("tar", &["-C", parent, "-cf", text(&dir.join("a.ova")), "disk.ovf", "disk.vmdk"]);
    into_file(&dir.join("b.qcow2.xz"), "xz", &["--block-size=1MiB", "-c", text(&qcow2)]);
    into_file(&dir.join("c.raw.zst"), "zstd", &["-q", "-c", text(&disk)]);
    run("bgzip", &["--index", text(&disk)]);
    fs::rename(dir.join("disk.raw.gz"), dir.join("d.raw.gz")).unwrap();
    fs::rename(dir.join("disk.raw.gz.gzi"), dir.join("d.raw.gz.gzi")).unwrap();

    let http = Http::start(&dir);
    let cache = dir.join("cache");
    // A round of local files, one that fills a cache over HTTP, and one that is served from it.
    for (base, options) in [
        (parent.to_owned(), vec!["--no-cache"]),
        (http.url.clone(), vec!["--cache", text(&cache)]),
        (http.url.clone(), vec!["--cache", text(&cache)]),
    ] {
        let names = ["a.ova", "b.qcow2.xz", "c.raw.zst", "d.raw.gz"];
        let exports: Vec<String> = names.iter().map(|name| format!("{name}={base}/{name}")).collect();
        let arguments: Vec<&str> =
            options.iter().copied().chain(exports.iter().map(String::as_str)).collect();
        let server = Server::start(&dir, &arguments);
        for name in names {
            let copy = dir.join("copy");
            run("nbdcopy", &[&server.uri(name), text(&copy)]);
            // The formats count whole sectors; the guest's disk is made of them.
            assert_same_bytes(&format!("{name} from {base}"), &fs::read(&copy).unwrap(), &wanted);
            fs::remove_file(&copy).unwrap();
        }
        server.terminate();
    }

    let info = run(THINORIGIN, &["info", "--json", "--no-cache", text(&dir.join("b.qcow2.xz"))]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!((&info["format"], &info["compressed"]), (&"qcow2".into(), &true.into()));
    assert_eq!(info["features"][0], "xz");
}

#[test]
fn an_archive_of_several_disks_wants_a_name() {
    if !has("an_archive_of_several_disks_wants_a_name", &["tar"]) {
        return;
    }
    let dir = Dir::new();
    fs::write(dir.join("a.img"), [1; 1024]).unwrap();
    fs::write(dir.join("b.img"), [2; 1024]).unwrap();
    let archive = dir.join("two.ova");
    run("tar", &["-C", text(dir.path()), "-cf", text(&archive), "a.img", "b.img"]);
    let archive = text(&archive);
    let said = refusal(&["info", "--no-cache", archive]);
    assert!(said.contains(r#"--member: "a.img", "b.img""#), "{said}");
    let second = run(THINORIGIN, &["cat", "--no-cache", "--member", "b.img", archive]);
    assert_eq!(second.stdout, [2; 1024]);
    let said = refusal(&["cat", "--no-cache", "--member", "c.img", archive]);
    assert!(said.contains(r#"no file "c.img""#), "{said}");
    let raw = run(THINORIGIN, &["cat", "--no-cache", "--format", "raw", archive]);
    assert!(raw.stdout == fs::read(archive).unwrap(), "as raw, the archive is the disk");
}

#[test]
fn what_only_looks_like_a_container_is_refused() {
    let dir = Dir::new();
    let fake = dir.join("fake.ova");
    fs::write(&fake, "<?xml version=\"1.0\"?>").unwrap();
    let said = refusal(&["info", "--no-cache", text(&fake)]);
    assert!(said.contains("no tar archive"), "{said}");
    if has("what_only_looks_like_a_container_is_refused", &["bgzip"]) {
        fs::write(dir.join("a.raw"), vec![3; 100_000]).unwrap();
        run("bgzip", &[text(&dir.join("a.raw"))]);
        let said = refusal(&["info", "--no-cache", text(&dir.join("a.raw.gz"))]);
        assert!(said.contains("bgzip --reindex"), "{said}");
    }
}
