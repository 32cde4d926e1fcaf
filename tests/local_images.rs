//! Images on local files: what is not compressed is served from where it lies, and leaves nothing in the cache.

mod common;

use common::{Dir, Server, THINORIGIN, assert_same_bytes, has, oracle, run, text};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

const TOOLS: [&str; 2] = ["nbdcopy", "qemu-img"];

/// What is in the cache.
fn objects(cache: &Path) -> Vec<Value> {
    let output = run(THINORIGIN, &["cache", "list", "--json", "--cache", text(cache)]);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Serves `image`, reads all of it, and asks how much of it is local; what is in the cache after that.
fn read_whole(dir: &Dir, cache: &Path, image: &Path, wanted: &[u8]) -> Vec<Value> {
    let (admin, copy) = (format!("unix:{}", text(&dir.join("admin.sock"))), dir.join("copy"));
    let server = Server::start(dir, &["--cache", text(cache), "--admin", &admin, text(image)]);
    run("nbdcopy", &[&server.uri(""), text(&copy)]);
    assert_same_bytes(text(image), &fs::read(&copy).unwrap()[..wanted.len()], wanted);
    let exports = run(THINORIGIN, &["exports", "--json", "--admin", &admin]).stdout;
    let exports: Value = serde_json::from_slice(&exports).unwrap();
    assert_eq!(exports[0]["progress"]["local"], exports[0]["progress"]["data"]);
    assert!(exports[0]["progress"]["data"].as_u64() > Some(1 << 20));
    server.terminate();
    objects(cache)
}

#[test]
fn what_is_not_compressed_leaves_nothing_in_the_cache() {
    if !has("what_is_not_compressed_leaves_nothing_in_the_cache", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let (raw, cache) = (dir.guest_disk("disk.raw"), dir.join("cache"));
    for (name, format, options) in [
        ("plain.qcow2", "qcow2", &[][..]),
        ("small.qcow2", "qcow2", &["-o", "cluster_size=4096"]),
        ("old.qcow", "qcow", &[]),
        ("disk.vmdk", "vmdk", &[]),
    ] {
        let image = dir.join(name);
        let convert =
            [&["convert", "-f", "raw", "-O", format], options, &[text(&raw), text(&image)]].concat();
        run("qemu-img", &convert);
        let wanted = oracle(&image, format);
        assert_eq!(read_whole(&dir, &cache, &image, &wanted), [] as [Value; 0], "{name}");
    }
    // The directory of objects is all there is.
    let left: Vec<_> =
        fs::read_dir(cache.join("objects")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!left.iter().any(|path| path.is_dir()), "{left:?}");
}

#[test]
fn what_is_compressed_is_kept_decoded() {
    if !has("what_is_compressed_is_kept_decoded", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let (raw, image, cache) = (dir.guest_disk("disk.raw"), dir.join("packed.qcow2"), dir.join("cache"));
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&image)]);
    let wanted = oracle(&image, "qcow2");
    for round in ["inflated", "found again"] {
        let kept = read_whole(&dir, &cache, &image, &wanted);
        let [object] = &kept[..] else { panic!("{round}: {kept:?}") };
        assert!(object["part"].as_str().unwrap().starts_with("decoded units of qcow2"), "{object}");
        assert!(object["local"].as_u64() > Some(1 << 20), "{object}");
    }
    // An overlay that is not compressed, on a base that is: the base's alone.
    let overlay = dir.join("overlay.qcow2");
    let create = ["create", "-f", "qcow2", "-b", "packed.qcow2", "-F", "qcow2", text(&overlay)];
    run("qemu-img", &create);
    let kept = read_whole(&dir, &dir.join("other"), &overlay, &wanted);
    assert_eq!(kept.len(), 1, "{kept:?}");
}

#[test]
fn an_image_that_is_not_compressed_is_warm_whoever_owns_the_cache() {
    if !has("an_image_that_is_not_compressed_is_warm_whoever_owns_the_cache", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let (raw, cache) = (dir.guest_disk("disk.raw"), dir.join("cache"));
    let (plain, packed) = (dir.join("plain.qcow2"), dir.join("packed.qcow2"));
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&plain)]);
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&packed)]);
    let owner = Server::start(&dir, &["--cache", text(&cache), text(&raw)]);
    let warm = |image: &Path| {
        let output = Command::new(THINORIGIN).args(["warm", "--cache", text(&cache), text(image)]).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, said) = warm(&plain);
    assert!(code == Some(0) && said.contains("are local"), "{said}");
    let (code, said) = warm(&packed);
    assert!(code == Some(3) && said.contains("another process owns this cache"), "{said}");
    owner.terminate();
    let (code, said) = warm(&packed);
    assert!(code == Some(0) && said.contains("are local"), "{said}");
    assert_eq!(objects(&cache).len(), 1);
}
