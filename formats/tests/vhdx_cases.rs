//! vhdx images that are damaged, hostile and odd: made from one that qemu-img writes, and built in memory.

mod common;

use common::images::{open_among, open_as, put, read, refusal};
use common::vhdx::{
    BAT, BLOCK, LOG, LOGICAL, LogWrite, METADATA, MIB, PARAMETERS, PRESENT, SIZE, Vhdx, guid, log_entry, sign,
};
use common::{content, convert, disk_content, has};
use tempfile::TempDir;
use thinorigin_formats::memory::Disk;

const KIB: usize = 1 << 10;

/// A dynamic vhdx with blocks of 1 MiB, and its content.
fn made() -> (Vec<u8>, Vec<u8>) {
    let directory = TempDir::new().unwrap();
    let bytes = disk_content(3 << 20, 21);
    convert(directory.path(), &bytes, "a.vhdx", "vhdx", &["-o", "block_size=1M"]);
    (std::fs::read(directory.path().join("a.vhdx")).unwrap(), bytes)
}

fn opened(name: &str, image: &[u8]) -> Disk {
    open_as(image, None).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn copies_stand_in_for_damaged_structures() {
    if !has("copies_stand_in_for_damaged_structures", "qemu-img") {
        return;
    }
    let (image, expect) = made();
    assert_eq!(content(&mut opened("good", &image)), expect);
    for at in [64, 128, 192, 256] {
        let mut damaged = image.clone();
        damaged[at * KIB + 20] ^= 1;
        assert_eq!(content(&mut opened("one copy damaged", &damaged)), expect, "damaged at {at} KiB");
    }
}

#[test]
fn what_is_refused() {
    if !has("what_is_refused", "qemu-img") {
        return;
    }
    let (image, _) = made();
    let refuse = |name: &str, image: &[u8], expect: &str| {
        let message = refusal(name, open_as(image, None));
        assert!(message.contains(expect), "{name}: {message}");
    };
    let both = |first: usize, second: usize, at: usize| {
        let mut image = image.clone();
        image[first * KIB + at] ^= 1;
        image[second * KIB + at] ^= 1;
        image
    };
    refuse("sig", &both(64, 128, 0), "vhdx header");
    refuse("crc", &both(64, 128, 100), "vhdx header");
    refuse("region-crc", &both(192, 256, 100), "vhdx region table");
    refuse("trunc", &image[..256 * KIB], "its file ends");
    refuse("magic", &image[..8], "vhdx header");
    // A cut file opens, and its lost blocks are errors, not zeros.
    let mut disk = opened("cut", &image[..image.len() - KIB]);
    let mut bytes = vec![0; 3 << 20];
    assert!(disk.read(0, &mut bytes).is_err_and(|error| error.to_string().contains("past the end")));
}

/// Checks that the image is refused with a message that contains `expect`.
fn refuse(name: &str, vhdx: &Vhdx, expect: &str) {
    let message = refusal(name, open_as(&vhdx.build(), None));
    assert!(message.contains(expect), "{name}: {message}");
}

#[test]
fn regions_and_items_that_make_no_sense() {
    assert_eq!(read(&mut opened("good", &Vhdx::new().build()), MIB as u64 - 1, 2), Ok(vec![0x88, 0]));
    refuse("version", &Vhdx { version: 2, ..Vhdx::new() }, "vhdx version");
    let strange = guid("00112233-4455-6677-8899-aabbccddeeff");
    let with_region = |id, at: usize, len: usize, required| {
        let mut vhdx = Vhdx::new();
        vhdx.regions.push((id, at as u64, len as u32, required));
        vhdx
    };
    let optional = with_region(strange, 16 * MIB, MIB, false);
    assert!(open_as(&optional.build(), None).is_ok(), "an optional region that is not known");
    refuse("required", &with_region(strange, 16 * MIB, MIB, true), "required region");
    refuse("overlap", &with_region(strange, METADATA, MIB, false), "regions overlap");
    refuse("overlap with the headers", &with_region(strange, 0, MIB, false), "multiple of 1 MiB");
    refuse("unaligned", &with_region(strange, 16 * MIB + 4096, MIB, false), "multiple of 1 MiB");
    for gone in [0, 1] {
        let mut vhdx = Vhdx::new();
        vhdx.regions.remove(gone);
        refuse("a region is missing", &vhdx, "is missing");
    }
    let mut far = Vhdx::new();
    far.regions[1].1 = 1 << 40;
    refuse("metadata past the end", &far, "its file ends");
    let mut far = Vhdx::new();
    far.regions[0].1 = 1 << 40;
    refuse("table past the end", &far, "its file ends");

    let with_item = |required| {
        let mut vhdx = Vhdx::new();
        vhdx.items.push((strange, vec![1; 8], required));
        vhdx
    };
    assert!(open_as(&with_item(false).build(), None).is_ok(), "an optional item that is not known");
    refuse("required", &with_item(true), "required item");
    for block in [0u64, 1 << 19, 3 << 20, 1 << 29] {
        refuse("block size", &Vhdx::new().with(PARAMETERS, &block.to_le_bytes()), "vhdx block size");
    }
    for sector in [0u32, 513, 8192] {
        refuse("sector size", &Vhdx::new().with(LOGICAL, &sector.to_le_bytes()), "logical sector size");
    }
    for size in [513u64, (64 << 40) + 512, u64::MAX] {
        refuse("size", &Vhdx::new().with(SIZE, &size.to_le_bytes()), "vhdx virtual disk size");
    }
    refuse("a short item", &Vhdx::new().with(SIZE, &[0; 4]), "shorter than its fields");
    refuse(
        "a table too small",
        &Vhdx::new().with(SIZE, &(1u64 << 40).to_le_bytes()),
        "too small for the disk",
    );
    let mut outside = Vhdx::new().build();
    put(&mut outside, METADATA + 32 + 16, &(MIB as u32).to_le_bytes());
    let message = refusal("an item outside its region", open_as(&outside, None));
    assert!(message.contains("must lie in the region"), "{message}");
    let mut none = Vhdx::new().build();
    none[METADATA] = b'M';
    assert!(refusal("no metadata", open_as(&none, None)).contains("signature is missing"));
    for at in common::vhdx::REGIONS {
        put(&mut none, at + 8, &2048u32.to_le_bytes());
        sign(&mut none[at..at + (64 << 10)]);
    }
    assert!(refusal("too many regions", open_as(&none, None)).contains("at most 2047"));
}

#[test]
fn states_of_blocks() {
    let read_with = |entry: u64| {
        let mut vhdx = Vhdx::new();
        vhdx.table[0] = entry;
        let mut disk = opened("states", &vhdx.build());
        assert_eq!(read(&mut disk, MIB as u64, 4), Ok(vec![0; 4]), "the next block is as it was");
        read(&mut disk, 0, 4)
    };
    // Not present, undefined, zero, unmapped, and what earlier versions called unmapped; wherever they point.
    for state in [0, 1, 2, 3, 5] {
        assert_eq!(read_with(BLOCK as u64 | state), Ok(vec![0; 4]), "{state}");
    }
    assert_eq!(read_with(PRESENT), Ok(vec![0x88; 4]));
    for state in [4, 7] {
        assert!(read_with(BLOCK as u64 | state).unwrap_err().contains("undefined state"), "{state}");
    }
    assert!(read_with(6).unwrap_err().contains("metadata"));
    assert!(read_with(1 << 40 | 6).unwrap_err().contains("past the end"));
}

#[test]
fn sectors_of_4096_bytes() {
    let vhdx = Vhdx::new().with(LOGICAL, &4096u32.to_le_bytes());
    let bytes = content(&mut opened("4096", &vhdx.build()));
    assert!(bytes.iter().enumerate().all(|(at, &byte)| byte == if at < MIB { 0x88 } else { 0 }));
    refuse(
        "a size that is no multiple",
        &vhdx.with(SIZE, &(MIB as u64 + 512).to_le_bytes()),
        "virtual disk size",
    );
}

#[test]
fn parents() {
    // The parent's data-write id is all 7.
    let linkage = "{07070707-0707-0707-0707-070707070707}";
    let parent = Vhdx::new().build();
    let among = |child: &Vhdx| open_among(&[("child.vhdx", &child.build()), ("parent.vhdx", &parent)], None);
    let mut child = Vhdx::new().child(linkage);
    child.table = vec![0; 4097];
    assert_eq!(
        read(&mut among(&child).unwrap(), MIB as u64 - 1, 2),
        Ok(vec![0x88, 0]),
        "absent is the parent's"
    );
    for (state, expect) in [(2, 0), (3, 0), (0, 0x88)] {
        child.table[0] = state;
        assert_eq!(read(&mut among(&child).unwrap(), 0, 1), Ok(vec![expect]), "state {state}");
    }
    child.table[0] = BLOCK as u64 | 7;
    let message = read(&mut among(&child).unwrap(), 0, 1).unwrap_err();
    assert!(message.contains("metadata"), "partly there, without a bitmap: {message}");
    let message = refusal("alone", open_as(&child.build(), None));
    assert!(message.contains("parent.vhdx"), "{message}");
    let other = Vhdx::new().child("{08080808-0808-0808-0808-080808080808}");
    let message = refusal("another parent", among(&Vhdx { table: vec![0; 4097], ..other }));
    assert!(message.contains("not the parent"), "{message}");
    let message = refusal("no linkage", among(&Vhdx { table: vec![0; 4097], ..Vhdx::new().child("?") }));
    assert!(message.contains("which parent is the right one"), "{message}");
    let mut locator = Vhdx::new().child(linkage);
    locator.items.pop();
    refuse("no locator", &locator, "no locator for it");
    let mut locator = Vhdx::new().child(linkage);
    locator.items[4].1[0] ^= 1;
    refuse("a locator of another type", &locator, "its type is not known");
}

/// An image whose log `log` has to be replayed.
fn with_log(log: &[u8]) -> Vec<u8> {
    let mut image = Vhdx { log_guid: [9; 16], table: vec![0; 4], ..Vhdx::new() }.build();
    put(&mut image, LOG, log);
    image
}

#[test]
fn logs() {
    let mut table = vec![0; 4096];
    put(&mut table, 0, &PRESENT.to_le_bytes());
    let end = (BLOCK + MIB) as u64;
    let write = || LogWrite::Data(BAT as u64, table.clone());
    let one = log_entry([9; 16], 1, end, &[write()]);
    let mut disk = opened("replayed", &with_log(&one));
    assert_eq!(read(&mut disk, 0, 4), Ok(vec![0x88; 4]), "the entry is in the log alone");
    assert_eq!(disk.chain().layers()[0].info().features, ["dynamic", "log-replayed"]);
    // Writes count in their order.
    let zeroed = log_entry([9; 16], 1, end, &[write(), LogWrite::Zero(BAT as u64, 4096)]);
    assert_eq!(read(&mut opened("zeroed", &with_log(&zeroed)), 0, 4), Ok(vec![0; 4]));
    let written = log_entry([9; 16], 1, end, &[LogWrite::Zero(BAT as u64, 4096), write()]);
    assert_eq!(read(&mut opened("written", &with_log(&written)), 0, 4), Ok(vec![0x88; 4]));
    // The newest sequence counts.
    let later = log_entry([9; 16], 7, end, &[LogWrite::Zero(BAT as u64, 4096)]);
    let mut two = one.clone();
    two.extend(&later);
    // An entry names the first of its sequence by the place in the log.
    let at = one.len();
    put(&mut two, at + 12, &(at as u32).to_le_bytes());
    sign(&mut two[at..]);
    assert_eq!(read(&mut opened("two sequences", &with_log(&two)), 0, 4), Ok(vec![0; 4]));
    // Another log's entries, and none at all: nothing was under way.
    let foreign = log_entry([8; 16], 1, end, &[write()]);
    for log in [&foreign[..], &[]] {
        let mut disk = opened("an empty log", &with_log(log));
        assert_eq!(read(&mut disk, 0, 4), Ok(vec![0; 4]));
        assert_eq!(disk.chain().layers()[0].info().features, ["dynamic"]);
    }

    let refused = |name: &str, log: &[u8], expect: &str| {
        let message = refusal(name, open_as(&with_log(log), None));
        assert!(message.contains(expect), "{name}: {message}");
    };
    let mut torn = one.clone();
    torn[4096 + 100] ^= 1;
    refused("an entry that was not written whole", &torn, "no complete sequence");
    let mut sequence = log_entry([9; 16], 1, end, &[write()]);
    put(&mut sequence, 12, &8192u32.to_le_bytes());
    sign(&mut sequence);
    refused("the first entry is lost", &sequence, "no complete sequence");
    refused("a file that was cut", &log_entry([9; 16], 1, end + 1, &[write()]), "its file ends");
    refused(
        "unaligned",
        &log_entry([9; 16], 1, end, &[LogWrite::Zero(BAT as u64 + 512, 4096)]),
        "aligned to 4 KiB",
    );
    let mut stale = log_entry([9; 16], 1, end, &[write()]);
    put(&mut stale, 64 + 24, &2u64.to_le_bytes());
    sign(&mut stale);
    refused("a descriptor of another entry", &stale, "belongs to another entry");
    let mut stale = log_entry([9; 16], 1, end, &[write()]);
    put(&mut stale, 4096 + 4092, &2u32.to_le_bytes());
    sign(&mut stale);
    refused("a data sector of another entry", &stale, "belongs to another entry");
    let mut many = log_entry([9; 16], 1, end, &[write()]);
    put(&mut many, 24, &u32::MAX.to_le_bytes());
    sign(&mut many);
    refused("more descriptors than there are", &many, "more descriptors than room");
    let data = [LogWrite::Data(BLOCK as u64, vec![5; 4096]), write()];
    refused("data of the guest", &log_entry([9; 16], 1, end, &data), "holds data of the disk");
    let mut place = Vhdx { log_guid: [9; 16], ..Vhdx::new() }.build();
    for at in [64 << 10, 128 << 10] {
        put(&mut place, at + 72, &4096u64.to_le_bytes());
        sign(&mut place[at..at + 4096]);
    }
    assert!(refusal("place", open_as(&place, None)).contains("multiples of 1 MiB"));
}
