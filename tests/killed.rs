//! A server that is killed while it fills its cache: the next one finds in it the right bytes, or none.

mod common;

use common::nbd::Nbd;
use common::{Dir, Http, Server, assert_same_bytes, has, run, text};
use std::fs;
use std::thread;
use std::time::Duration;

const TOOLS: [&str; 4] = ["nginx", "setsid", "nbdcopy", "qemu-img"];

/// How long a server lives, in milliseconds: from less than the first block takes to when all is there and is evicted again.
const LIVES: [u64; 5] = [5, 30, 100, 300, 700];

/// Reads here and there until the server is gone, and compares every byte with `disk`; how many reads were answered.
fn read_until_the_end(server: &Server, export: &str, disk: &[u8], seed: u64) -> u64 {
    let (mut state, mut reads) = (seed, 0);
    let Ok(mut nbd) = Nbd::connect_to(&server.socket, export) else { return 0 };
    loop {
        let places: Vec<_> = (0..8)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Some small, some large enough for the file to be sent from.
                let most = if state >> 63 == 0 { 9_000 } else { 300_000 };
                let len = 1 + (state >> 33) % most;
                ((state >> 13) % (disk.len() as u64 - len), len as u32)
            })
            .collect();
        let Ok(answers) = nbd.read_all(&places) else { return reads };
        for (answer, (at, len)) in answers.into_iter().zip(&places) {
            let wanted = &disk[*at as usize..][..*len as usize];
            assert!(answer.expect("a read is answered") == wanted, "{export}: {len} bytes at {at:#x}");
            reads += 1;
        }
    }
}

#[test]
fn a_killed_server_leaves_nothing_wrong_behind() {
    if !has("a_killed_server_leaves_nothing_wrong_behind", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let raw = dir.guest_disk("disk.raw");
    let packed = dir.join("disk.qcow2");
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&packed)]);
    let disk = fs::read(&raw).unwrap();
    let http = Http::start(&dir);
    let exports = ["raw", "qcow2"].map(|kind| format!("{kind}={}/disk.{kind}", http.url));
    let (cache, copy) = (dir.join("cache"), dir.join("copy"));
    // For one of them there is room, and what is left by then of what was evicted matters as well.
    for size in ["1G", "8M"] {
        let start = || {
            Server::start(&dir, &["--cache", text(&cache), "--cache-size", size, &exports[0], &exports[1]])
        };
        let mut reads = 0;
        for life in LIVES {
            let server = start();
            thread::scope(|scope| {
                let readers: Vec<_> = (0..4)
                    .map(|number| {
                        let (server, disk) = (&server, &disk);
                        let export = ["raw", "qcow2"][number as usize % 2];
                        scope.spawn(move || read_until_the_end(server, export, disk, life << 8 | number))
                    })
                    .collect();
                thread::sleep(Duration::from_millis(life));
                run("kill", &["-KILL", &server.pid().to_string()]);
                reads += readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u64>();
            });
            drop(server);
            let _ = fs::remove_file(dir.join("nbd.sock"));

            let server = start();
            for export in ["raw", "qcow2"] {
                run("nbdcopy", &[&server.uri(export), text(&copy)]);
                let what = format!("{export} after {life} ms with {size}");
                assert_same_bytes(&what, &fs::read(&copy).unwrap()[..disk.len()], &disk);
            }
            drop(server);
            let _ = fs::remove_file(dir.join("nbd.sock"));
            if life < 100 {
                // What comes next shall begin with nothing, too.
                fs::remove_dir_all(&cache).unwrap();
            }
        }
        assert!(reads > 100, "{reads} reads under load");
        fs::remove_dir_all(&cache).unwrap();
    }
}
