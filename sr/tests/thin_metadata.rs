//! What a pool's metadata says, read here and by the thin-provisioning tools, of pools that `thin_restore` makes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use thinorigin_sr::thin::{MetadataReader, Root, Seen, ThinMetadata};

const CHUNK: u64 = 128 << 10;

/// Whether the tools are there; says so on stderr, or fails where they must be.
fn tools(test: &str) -> bool {
    let there =
        ["/usr/sbin", "/sbin", "/usr/bin"].iter().any(|dir| Path::new(dir).join("thin_restore").exists());
    let required = std::env::var_os("THINORIGIN_REQUIRE").is_some_and(|it| it == "1");
    assert!(there || !required, "{test} needs thin_restore");
    if !there {
        eprintln!("SKIPPED: {test}: needs thin_restore");
    }
    there
}

fn tool(name: &str, arguments: &[&str]) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(name)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output()
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A generator of random numbers with a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// Mappings of each device: block to block of the pool.
type Pool = BTreeMap<u32, BTreeMap<u64, u64>>;

/// Devices of which each shares most with one before it, from one mapping to so many that their trees are three high.
fn pool(random: &mut Random, devices: u32, blocks: u64) -> Pool {
    let mut pool = Pool::new();
    let mut next = 0;
    for id in 0..devices {
        let mut mappings = match pool.len() as u64 {
            0 => BTreeMap::new(),
            n if random.below(4) > 0 => pool.values().nth(random.below(n) as usize).unwrap().clone(),
            _ => BTreeMap::new(),
        };
        for _ in 0..random.below(blocks) + 1 {
            let at = random.below(blocks * 3);
            for block in at..at + random.below(4) {
                if random.below(5) == 0 {
                    mappings.remove(&block);
                } else {
                    mappings.insert(block, next);
                    next += 1;
                }
            }
        }
        pool.insert(id * 7 + 1, mappings);
    }
    pool
}

/// Has the metadata of the pool written by `thin_restore`.
fn restore(directory: &Path, pool: &Pool) -> PathBuf {
    let (xml, device) = (directory.join("xml"), directory.join("metadata"));
    let end = pool.values().flat_map(BTreeMap::values).max().map_or(1, |last| last + 1);
    let mut text = format!(
        "<superblock uuid=\"\" time=\"1\" transaction=\"5\" data_block_size=\"{}\" nr_data_blocks=\"{end}\">\n",
        CHUNK / 512
    );
    for (id, mappings) in pool {
        text += &format!(
            "<device dev_id=\"{id}\" mapped_blocks=\"{}\" transaction=\"0\" creation_time=\"0\" snap_time=\"1\">\n",
            mappings.len()
        );
        for (block, data) in mappings {
            text += &format!("<single_mapping origin_block=\"{block}\" data_block=\"{data}\" time=\"0\"/>\n");
        }
        text += "</device>\n";
    }
    text += "</superblock>\n";
    std::fs::write(&xml, text).unwrap();
    std::fs::File::create(&device).unwrap().set_len(12 << 20).unwrap();
    tool("thin_restore", &["-i", xml.to_str().unwrap(), "-o", device.to_str().unwrap()]);
    device
}

fn whole<T>(seen: Seen<T>) -> T {
    match seen {
        Seen::Whole(answer) => answer,
        Seen::Moved => panic!("nobody writes this metadata"),
    }
}

fn attribute(line: &str, name: &str) -> Option<u64> {
    line.split_once(&format!(" {name}=\""))?.1.split_once('"')?.0.parse().ok()
}

/// The ranges of bytes in lines of XML that have a beginning and perhaps a length, merged.
fn ranges<'a>(lines: impl Iterator<Item = &'a str>, begins: &[&str]) -> Vec<Range<u64>> {
    let mut blocks: Vec<Range<u64>> = Vec::new();
    for line in lines {
        let start = begins.iter().find_map(|name| attribute(line, name)).expect("a beginning") * CHUNK;
        let end = start + attribute(line, "length").unwrap_or(1) * CHUNK;
        match blocks.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => blocks.push(start..end),
        }
    }
    blocks
}

#[test]
fn the_tools_read_the_same() {
    if !tools("the_tools_read_the_same") {
        return;
    }
    let mut random = Random(41);
    for (devices, blocks) in [(1, 1), (3, 40), (12, 700), (300, 20), (3, 60_000)] {
        let directory = tempfile::tempdir().unwrap();
        let pool = pool(&mut random, devices, blocks);
        let device = restore(directory.path(), &pool);
        let path = device.to_str().unwrap();
        let usage = whole(MetadataReader.usage(&device, Root::Live).unwrap());
        let listed: BTreeMap<u32, u64> = tool("thin_ls", &["--no-headers", "-o", "DEV,MAPPED_SECTORS", path])
            .lines()
            .map(|line| {
                let mut words = line.split_whitespace().map(|word| word.parse::<u64>().unwrap());
                (words.next().unwrap() as u32, words.next().unwrap() * 512)
            })
            .collect();
        assert_eq!(usage, listed);
        let ids: Vec<u32> = pool.keys().copied().collect();
        for &id in ids.iter().take(5) {
            let of_one = whole(MetadataReader.usage_of(&device, Root::Live, id).unwrap());
            assert_eq!(of_one, usage.get(&id).copied());
            let mapped = whole(MetadataReader.mapped(&device, Root::Live, id).unwrap());
            let dump = tool("thin_dump", &["--dev-id", &id.to_string(), path]);
            let mappings = dump.lines().filter(|line| line.contains("_mapping "));
            assert_eq!(mapped, ranges(mappings, &["origin_block", "origin_begin"]), "device {id}");
            let other = ids[random.below(ids.len() as u64) as usize];
            let changed = whole(MetadataReader.changed(&device, Root::Live, id, other).unwrap());
            let (a, b) = (id.to_string(), other.to_string());
            let delta = tool("thin_delta", &["--snap1", &a, "--snap2", &b, path]);
            let different = ["<left_only ", "<right_only ", "<different "];
            let lines = delta.lines().filter(|line| different.iter().any(|word| line.contains(word)));
            assert_eq!(changed, ranges(lines, &["begin"]), "devices {id} and {other}");
        }
        assert_eq!(whole(MetadataReader.usage_of(&device, Root::Live, 2).unwrap()), None);
        let missing = MetadataReader.mapped(&device, Root::Live, 2).unwrap_err();
        assert_eq!(missing.message, "the pool has no thin device 2");
    }
}

/// Whatever happens to a block, an answer is the right one or an error.
#[test]
fn damage_is_told_and_never_believed() {
    if !tools("damage_is_told_and_never_believed") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(7);
    let pool = pool(&mut random, 4, 3000);
    let device = restore(directory.path(), &pool);
    let good = std::fs::read(&device).unwrap();
    let ids: Vec<u32> = pool.keys().copied().collect();
    let right: Vec<_> =
        ids.iter().map(|&id| whole(MetadataReader.mapped(&device, Root::Live, id).unwrap())).collect();
    let used = good.chunks(4096).filter(|block| block.iter().any(|&byte| byte != 0)).count() as u64;
    let file = std::fs::OpenOptions::new().write(true).open(&device).unwrap();
    let mut told = 0;
    for _ in 0..400 {
        let at = random.below(used * 4096);
        let byte = good[at as usize];
        file.write_all_at(&[byte ^ (random.below(255) as u8 + 1)], at).unwrap();
        for (&id, right) in ids.iter().zip(&right) {
            match MetadataReader.mapped(&device, Root::Live, id) {
                Ok(seen) => assert_eq!(whole(seen), *right),
                Err(e) => {
                    told += 1;
                    assert!(e.message.contains("is damaged: block"), "{e}");
                }
            }
        }
        file.write_all_at(&[byte], at).unwrap();
    }
    assert!(told > 200, "damage was told only {told} times");
    std::fs::write(&device, &good[..8192]).unwrap();
    assert!(
        MetadataReader.mapped(&device, Root::Live, ids[0]).unwrap_err().message.contains("beyond its end")
    );
    std::fs::write(&device, [0; 4096]).unwrap();
    assert!(MetadataReader.usage(&device, Root::Live).is_err());
    std::fs::write(&device, b"").unwrap();
    assert!(MetadataReader.usage(&device, Root::Held(3)).is_err());
}
