//! Every format, from a file and over HTTP: what NBD clients of others read through our export is, byte for byte, what
//! qemu-img decodes from the same image.

mod common;

use backends::Source;
use backends::cache::{Fill, Key, Pieces, Store};
use common::{Dir, Http, Server, assert_same_bytes, has, oracle, run, text};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

const TOOLS: [&str; 5] = ["qemu-img", "nbdcopy", "nbdinfo", "nginx", "setsid"];

/// Makes an image of the guest's disk with these arguments of `qemu-img convert`; nothing where tools are missing.
fn convert(test: &str, format: &str, arguments: &[&str]) -> Option<(Dir, PathBuf)> {
    if !has(test, &TOOLS) {
        return None;
    }
    let dir = Dir::new();
    let disk = dir.guest_disk("disk");
    let image = dir.join("image.img");
    let convert = [&["convert", "-f", "raw", "-O", format], arguments, &[text(&disk), text(&image)]].concat();
    run("qemu-img", &convert);
    Some((dir, image))
}

/// Makes an image as [`convert`] does, and checks it.
fn check(test: &str, format: &str, arguments: &[&str]) {
    if let Some((dir, image)) = convert(test, format, arguments) {
        check_image(&dir, &image, format);
    }
}

fn check_image(dir: &Dir, image: &Path, format: &str) {
    let wanted = oracle(image, format);
    assert!(wanted.iter().any(|byte| *byte != 0), "the image is to hold something");

    let server = Server::start(dir, &["--no-cache", text(image)]);
    check_export("from a file", dir, &server, image, format, &wanted);
    server.terminate();
    let server = Server::start(dir, &["--no-cache", text(image)]);
    forget(image);
    check_export("from the disk", dir, &server, image, format, &wanted);
    server.terminate();

    let http = Http::start(dir);
    let location = format!("{}/{}", http.url, image.file_name().unwrap().to_str().unwrap());
    let cache = dir.join("cache");
    for (round, arguments) in [
        ("over HTTP", vec!["--no-cache"]),
        ("over HTTP, through a new cache", vec!["--cache", text(&cache)]),
        ("over HTTP, from the cache of another run", vec!["--cache", text(&cache)]),
    ] {
        let server = Server::start(dir, &[arguments, vec![&location]].concat());
        check_export(round, dir, &server, image, format, &wanted);
        server.terminate();
    }
}

/// Makes the page cache let go of `file`, where the file system can.
fn forget(file: &Path) {
    let file = fs::File::open(file).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// Reads the default export and the one called `image` with the clients of two projects.
fn check_export(round: &str, dir: &Dir, server: &Server, image: &Path, format: &str, wanted: &[u8]) {
    let copy = dir.join("copy");
    run("nbdcopy", &[&server.uri("image"), text(&copy)]);
    assert_same_bytes(&format!("nbdcopy {round}"), &fs::read(&copy).unwrap(), wanted);
    fs::remove_file(&copy).unwrap();

    let compared = run("qemu-img", &["compare", "-f", "raw", "-F", format, &server.uri(""), text(image)]);
    let said = String::from_utf8_lossy(&compared.stdout);
    assert!(said.contains("Images are identical"), "qemu-img compare {round}: {said}");

    let info = run("nbdinfo", &["--json", &server.uri("image")]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], wanted.len(), "{round}");
    assert_eq!(export["is_read_only"], true, "{round}");

    let info = run("qemu-img", &["info", "--output=json", &server.uri("")]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["virtual-size"], wanted.len(), "{round}");
}

#[test]
fn raw() {
    check("raw", "raw", &[]);
}

#[test]
fn qcow2_version_2() {
    check("qcow2_version_2", "qcow2", &["-o", "compat=0.10"]);
}

#[test]
fn qcow2_version_3() {
    check("qcow2_version_3", "qcow2", &["-o", "compat=1.1"]);
}

#[test]
fn qcow2_with_small_clusters() {
    check("qcow2_with_small_clusters", "qcow2", &["-o", "cluster_size=512"]);
}

#[test]
fn qcow2_with_large_clusters() {
    check("qcow2_with_large_clusters", "qcow2", &["-c", "-o", "cluster_size=2M"]);
}

#[test]
fn qcow2_compressed_with_zlib() {
    check("qcow2_compressed_with_zlib", "qcow2", &["-c"]);
}

#[test]
fn qcow2_compressed_with_zstd() {
    check("qcow2_compressed_with_zstd", "qcow2", &["-c", "-o", "compression_type=zstd"]);
}

#[test]
fn qcow2_with_zero_clusters() {
    check("qcow2_with_zero_clusters", "qcow2", &["-S", "0", "-o", "preallocation=metadata"]);
}

#[test]
fn vhd_dynamic() {
    check("vhd_dynamic", "vpc", &["-o", "subformat=dynamic,force_size=on"]);
}

#[test]
fn vhd_fixed() {
    check("vhd_fixed", "vpc", &["-o", "subformat=fixed,force_size=on"]);
}

#[test]
fn vmdk_monolithic_sparse() {
    check("vmdk_monolithic_sparse", "vmdk", &["-o", "subformat=monolithicSparse"]);
}

#[test]
fn vmdk_stream_optimized() {
    check("vmdk_stream_optimized", "vmdk", &["-o", "subformat=streamOptimized"]);
}

#[test]
fn qcow2_on_a_backing_file_of_another_format() {
    if !has("qcow2_on_a_backing_file_of_another_format", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let disk = dir.guest_disk("disk");
    run(
        "qemu-img",
        &[
            "convert",
            "-O",
            "vmdk",
            "-o",
            "subformat=streamOptimized",
            text(&disk),
            text(&dir.join("base.vmdk")),
        ],
    );
    let image = dir.join("image.qcow2");
    // The overlay is longer than what it lies on: beyond its end it reads as zeroes.
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.vmdk", "-F", "vmdk", text(&image), "12M"]);
    for write in ["write -P 0x5a 65000 1500", "write -z 4194304 131072", "write -P 0xa5 12582400 512"] {
        run("qemu-io", &["-c", write, text(&image)]);
    }
    check_image(&dir, &image, "qcow2");
}

#[test]
fn qcow2_compressed_and_written_to_since() {
    let made = convert("qcow2_compressed_and_written_to_since", "qcow2", &["-c"]);
    let Some((dir, image)) = made else { return };
    for write in [
        "write -P 0x5a 100 1500",
        "write -z 131072 65536",
        "discard 262144 65536",
        "write -c -P 7 393216 65536",
    ] {
        run("qemu-io", &["-c", write, text(&image)]);
    }
    check_image(&dir, &image, "qcow2");
}

#[test]
fn qcow2_with_parts_of_clusters() {
    if !has("qcow2_with_parts_of_clusters", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let (disk, base, image) = (dir.guest_disk("disk"), dir.join("base.qcow2"), dir.join("image.qcow2"));
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&disk), text(&base)]);
    // A cluster of it can be the parent's in part, and the last one is not a whole one.
    let options = "extended_l2=on,cluster_size=64k";
    let size = (fs::metadata(&disk).unwrap().len() + 512).to_string();
    let create = ["create", "-q", "-f", "qcow2", "-o", options, "-b", "base.qcow2", "-F", "qcow2"];
    run("qemu-img", &[&create[..], &[text(&image), &size]].concat());
    let end = format!("write -P 3 {} 512", size.parse::<u64>().unwrap() - 512);
    for write in ["write -P 0x5a 4096 2048", "write -z 69632 2048", "write -c -P 7 131072 65536", &end] {
        run("qemu-io", &["-c", write, text(&image)]);
    }
    check_image(&dir, &image, "qcow2");
}

/// Clusters that are not compressed, as large as blocks of the cache, are among those that are.
#[test]
fn stored_clusters_are_kept_as_the_disk_has_them() {
    if !has("stored_clusters_are_kept_as_the_disk_has_them", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let http = Http::start(&dir);
    let (disk, cache, copy) = (dir.guest_disk("disk"), dir.join("cache"), dir.join("copy"));
    for (name, options, kept) in
        [("64.qcow2", "cluster_size=64k", true), ("32.qcow2", "cluster_size=32k", false)]
    {
        let image = dir.join(name);
        run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-o", options, text(&disk), text(&image)]);
        let (location, wanted) = (format!("{}/{name}", http.url), oracle(&image, "qcow2"));
        let server = Server::start(&dir, &["--cache", text(&cache), &location]);
        for round in ["empty", "filled"] {
            let before = http.bytes_sent();
            run("nbdcopy", &[&server.uri(""), text(&copy)]);
            assert_same_bytes(&format!("{name}, the cache {round}"), &fs::read(&copy).unwrap(), &wanted);
            assert_eq!(http.bytes_sent() > before, round == "empty", "{name}, the cache {round}");
        }
        server.terminate();
        // Each byte is fetched once and kept once, but for those at the ends that opening brings.
        let length = fs::metadata(&image).unwrap().len();
        let list = run(common::THINORIGIN, &["cache", "list", "--json", "--cache", text(&cache)]).stdout;
        let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
        let local = |part: &str| -> u64 {
            let of = |object: &&serde_json::Value| {
                object["location"] == location.as_str() && object["part"].as_str().unwrap().starts_with(part)
            };
            list.as_array().unwrap().iter().filter(of).map(|object| object["local"].as_u64().unwrap()).sum()
        };
        let (raw, decoded) = (local("raw"), local("decoded"));
        assert_eq!(decoded > length / 2, kept, "{name}: {decoded} of {length} bytes");
        assert_eq!(raw < length / 2 + (320 << 10), kept, "{name}: {raw} of {length} bytes");
    }
}

/// Read as another format, or by a version that kept stored clusters as blocks of the file, an image is in the cache all the
/// same.
#[test]
fn what_the_cache_has_of_the_file_needs_no_server() {
    let made = convert("what_the_cache_has_of_the_file_needs_no_server", "qcow2", &[]);
    let Some((dir, image)) = made else { return };
    let (http, cache) = (Http::start(&dir), dir.join("cache"));
    let (location, wanted) = (format!("{}/image.img", http.url), oracle(&image, "qcow2"));
    run(common::THINORIGIN, &["warm", "--format", "raw", "--cache", text(&cache), &location]);
    drop(http);
    let (server, copy) = (Server::start(&dir, &["--cache", text(&cache), &location]), dir.join("copy"));
    run("nbdcopy", &[&server.uri(""), text(&copy)]);
    assert_same_bytes("the server is gone", &fs::read(&copy).unwrap(), &wanted);
}

/// Zeros, which is what versions before this one kept as decoded where a cluster is stored as it is.
struct Zeros;

impl Fill for Zeros {
    async fn fill(&self, range: Range<u64>) -> Result<Pieces, backends::Error> {
        Ok(vec![(range.start, vec![0; (range.end - range.start) as usize].into())])
    }
}

#[tokio::test]
async fn what_other_versions_kept_as_decoded_is_not_read() {
    let made = convert("what_other_versions_kept_as_decoded_is_not_read", "qcow2", &["-c"]);
    let Some((dir, image)) = made else { return };
    run("qemu-io", &["-c", "write -P 0x5a 65536 65536", text(&image)]);
    let wanted = oracle(&image, "qcow2");
    let (http, cache, copy) = (Http::start(&dir), dir.join("cache"), dir.join("copy"));
    let location = format!("{}/image.img", http.url);
    let source = backends::open(&location.parse().unwrap(), &backends::Options::default()).await.unwrap();
    let store = Store::open(&cache, 1 << 30).unwrap();
    let part = "decoded from qcow2, active []".to_owned();
    let key = Key { identity: source.identity().clone(), part };
    let size = wanted.len() as u64;
    let object = store.object(&key, size, 64 << 10, Zeros).await.unwrap();
    assert!(object.warm(0..size).await.unwrap());
    store.sync();
    drop((object, store));
    let server = Server::start(&dir, &["--cache", text(&cache), &location]);
    for round in ["empty", "filled"] {
        run("nbdcopy", &[&server.uri(""), text(&copy)]);
        assert_same_bytes(&format!("with the cache {round}"), &fs::read(&copy).unwrap(), &wanted);
    }
}

#[test]
fn vmdk_whose_compressed_extent_begins_anywhere() {
    if !has("vmdk_whose_compressed_extent_begins_anywhere", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let (disk, extent) = (dir.guest_disk("disk"), dir.join("stream.vmdk"));
    let convert = ["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"];
    run("qemu-img", &[&convert[..], &[text(&disk), text(&extent)]].concat());
    // Every grain has parts of two blocks of the cache, of which the first begins with what is not compressed. qemu 10 takes
    // the flat extent for two.
    let flat = [0x5a; 3 * 512];
    fs::write(dir.join("flat.bin"), flat).unwrap();
    let wanted = [flat.to_vec(), oracle(&extent, "vmdk")].concat();
    let sectors = wanted.len() / 512 - 3;
    let descriptor = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"custom\"\n\n\
         RW 3 FLAT \"flat.bin\" 0\nRW {sectors} SPARSE \"stream.vmdk\"\n\nddb.adapterType = \"ide\"\n"
    );
    fs::write(dir.join("image.vmdk"), descriptor).unwrap();
    let http = Http::start(&dir);
    let (location, cache, copy) = (format!("{}/image.vmdk", http.url), dir.join("cache"), dir.join("copy"));
    let server = Server::start(&dir, &["--cache", text(&cache), &location]);
    for round in ["empty", "filled"] {
        run("nbdcopy", &[&server.uri(""), text(&copy)]);
        assert_same_bytes(&format!("with the cache {round}"), &fs::read(&copy).unwrap(), &wanted);
    }
}

#[test]
fn a_restarted_server_fetches_nothing_twice() {
    if !has("a_restarted_server_fetches_nothing_twice", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let disk = dir.guest_disk("disk");
    let image = dir.join("image.qcow2");
    run("qemu-img", &["convert", "-c", "-O", "qcow2", text(&disk), text(&image)]);
    let http = Http::start(&dir);
    let location = format!("{}/image.qcow2", http.url);
    let arguments = ["--cache", text(&dir.join("cache")), &location].map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut fetched = Vec::new();
    for _ in 0..2 {
        let server = Server::start(&dir, &arguments);
        run("nbdcopy", &[&server.uri(""), "null:"]);
        server.terminate();
        fetched.push(http.bytes_sent());
    }
    let size = fs::metadata(&image).unwrap().len();
    let (first, second) = (fetched[0], fetched[1] - fetched[0]);
    // The whole of the image is fetched once. Opening it brings its first 320 KiB along, for then it is likely to be known
    // what it is; and the second time next to nothing.
    let head = 320 << 10;
    assert!(first <= size + size / 4 + head, "{first} bytes were fetched of an image of {size}");
    assert!(second <= 1024, "{second} bytes of {size} were fetched again after a restart");
}

#[test]
fn damage_is_told_with_its_offset() {
    if !has("damage_is_told_with_its_offset", &["nbdsh"]) {
        return;
    }
    let dir = Dir::new();
    let mut image = common::naming::qcow2("", false);
    // One table. Its second cluster is said to be where no cluster can be.
    image[0x10000..0x10008].copy_from_slice(&(0x20000_u64 | 1 << 63).to_be_bytes());
    image[0x20008..0x20010].copy_from_slice(&(0x20200_u64 | 1 << 63).to_be_bytes());
    fs::write(dir.join("image.qcow2"), image).unwrap();
    let server = Server::start(&dir, &["--no-cache", text(&dir.join("image.qcow2"))]);
    let read = "
import nbd, sys
handle, found = nbd.NBD(), []
handle.connect_uri(sys.argv[1])
assert handle.pread(65536, 0) == bytes(65536)
try:
    handle.pread_structured(131072, 4096, lambda data, offset, kind, error: found.append((offset, kind, error.value)))
except nbd.Error as error:
    assert error.errno == 'EIO', error
assert found == [(65536, nbd.READ_ERROR, 5)], found
";
    // The system's Python has libnbd. Isolated, it does not see that there is a directory called nbd here.
    run("/usr/bin/python3", &["-I", "-c", read, &server.uri("")]);
    server.terminate();
}
