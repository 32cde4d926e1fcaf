//! How much of a disk is local, how fast that grows and when it will be all: with one look.

mod common;

use backends::testing::{Lie, Origin};
use common::{Dir, Server, THINORIGIN, becomes_true, has, run, text};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

/// Serves `content` as `name` from a server that takes half a second for each answer, fetching in the background, and looks
/// once, after a few seconds.
fn look_once(name: &str, content: Vec<u8>) {
    let dir = Dir::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let origin = runtime.block_on(Origin::start(content)).unwrap();
    origin.always(Lie::Late(Duration::from_millis(500)));
    let admin = format!("unix:{}", text(&dir.join("admin.sock")));
    let cache = dir.join("cache");
    let server =
        Server::start(&dir, &["--cache", text(&cache), "--admin", &admin, "--prefetch", &origin.url(name)]);
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(3));
    let exports = run(THINORIGIN, &["exports", "--json", "--admin", &admin]).stdout;
    let seconds = began.elapsed().as_secs_f64();
    let exports: Value = serde_json::from_slice(&exports).unwrap();
    let progress = &exports[0]["progress"];
    let number = |key: &str| progress[key].as_u64().unwrap_or_else(|| panic!("no {key}: {progress}")) as f64;
    let (data, local, rate, left) = (number("data"), number("local"), number("rate"), number("seconds_left"));
    assert!(local > 0.0 && local < data, "it is under way: {progress}");
    let mean = local / seconds;
    assert!(mean / 2.0 < rate && rate < mean * 2.0, "{mean} bytes per second on the mean: {progress}");
    assert!((left - (data - local) / rate).abs() <= 1.0, "{progress}");
    // In words as well, and once all is here nothing of it is said.
    let words = || String::from_utf8(run(THINORIGIN, &["exports", "--admin", &admin]).stdout).unwrap();
    let said = words();
    assert!(said.contains("/s, ") && said.contains(" s left)"), "{said}");
    origin.always(Lie::None);
    becomes_true("all is local", || words().contains("100 %"));
    assert!(!words().contains("left"), "{}", words());
    server.terminate();
}

#[test]
fn one_look_says_when_a_raw_disk_will_be_local() {
    look_once("disk.raw", vec![7; 192 << 20]);
}

#[test]
fn one_look_says_when_a_compressed_disk_will_be_local() {
    if !has("one_look_says_when_a_compressed_disk_will_be_local", &["qemu-img"]) {
        return;
    }
    let dir = Dir::new();
    let (raw, image) = (dir.join("disk.raw"), dir.join("disk.qcow2"));
    // Half of each cluster is noise: it is compressed, and there is something to fetch.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut disk = vec![7; 160 << 20];
    disk.chunks_mut(16).for_each(|chunk| chunk[..8].copy_from_slice(&noise()));
    fs::write(&raw, disk).unwrap();
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&image)]);
    look_once("disk.qcow2", fs::read(&image).unwrap());
}

#[test]
fn warming_says_how_far_it_is_without_a_terminal() {
    let dir = Dir::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let origin = runtime.block_on(Origin::start(vec![7; 128 << 20])).unwrap();
    origin.always(Lie::Late(Duration::from_secs(1)));
    let (cache, location) = (dir.join("cache"), origin.url("disk.raw"));
    let began = Instant::now();
    let output = run(THINORIGIN, &["warm", "--json", "--cache", text(&cache), &location]);
    assert!(began.elapsed() > Duration::from_secs(6), "too fast to say anything: {:?}", began.elapsed());
    let said = String::from_utf8(output.stderr).unwrap();
    let line = said.lines().next().unwrap_or_else(|| panic!("nothing is said"));
    let (percent, rest) = line.strip_prefix("warming: ").unwrap().split_once(" % of 128 MiB, ").unwrap();
    assert!((1..100).contains(&percent.parse::<u32>().unwrap()), "{said}");
    assert!(rest.contains("MiB/s, ") && rest.ends_with(" s left"), "{said}");
    assert!(said.lines().all(|line| line.starts_with("warming: ")) && said.lines().count() < 10, "{said}");
    // What it comes to is one document on stdout.
    let warmed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&warmed["data"], &warmed["local"]), (&(128 << 20).into(), &(128 << 20).into()));
}
