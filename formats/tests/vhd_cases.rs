//! vhd images that no writer makes: damaged, hostile and odd ones, built in memory.

mod common;

use common::images::{
    open_among, open_as, put, qcow2, read, refusal, vhd, vhd_checksum, vhd_fixed, vhd_footer, vhd_header,
};
use thinorigin_formats::{Format, ParentCheck};

/// Checks that `image` is refused with a message that contains `expect`.
fn refuse(name: &str, image: &[u8], expect: &str) {
    let message = refusal(name, open_as(image, None));
    assert!(message.contains(expect), "{name}: {message}");
}

/// The dynamic image with another header, in both cases with the right checksum.
fn with_header(block: u32, entries: u32, table: u64) -> Vec<u8> {
    let mut image = vhd(3, [0xff; 512]);
    put(&mut image, 0x200, &vhd_header(block, entries, table));
    image
}

/// The dynamic image with both footers changed by `change` and their checksums right.
fn with_footer(change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut image = vhd(3, [0xff; 512]);
    let end = image.len() - 512;
    for at in [0, end] {
        let footer = &mut image[at..at + 512];
        change(footer);
        vhd_checksum(footer, 64);
    }
    image
}

/// Reads the whole image's first bytes and the first that no block holds.
fn check_content(name: &str, image: &[u8]) {
    let mut disk = open_as(image, None).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(disk.chain().layers()[0].format(), Format::Vhd, "{name}");
    assert_eq!(disk.chain().virtual_size(), 4 << 20, "{name}");
    assert_eq!(read(&mut disk, (2 << 20) - 512, 1024).unwrap(), [[0x22; 512], [0; 512]].concat(), "{name}");
}

#[test]
fn footers_and_their_copies() {
    let good = vhd(3, [0xff; 512]);
    let end = good.len() - 512;
    check_content("good", &good);
    check_content("no-trailing-footer", &good[..end]);
    let mut image = good.clone();
    image[..512].fill(0);
    check_content("no-header-copy", &image);
    image[end..].fill(0);
    assert_eq!(
        open_as(&image, None).unwrap().chain().layers()[0].format(),
        Format::Raw,
        "no footer at all is raw"
    );
    let mut image = good.clone();
    image[end + 100] ^= 1;
    check_content("footer-bad-checksum-tail", &image);
    assert_eq!(open_as(&image, None).unwrap().chain().layers()[0].info().warnings.len(), 1);
    image[100] ^= 1;
    refuse("csum-both", &image, "checksum of the vhd footer");
    // The sector bitmap of a dynamic disk is not read: sectors that it calls unused are zeros in any real image.
    check_content("dyn-bitmap", &vhd(3, [0; 512]));
    refuse("vhd-tiny", b"conectix", "checksum of the vhd footer");
}

#[test]
fn fixed_disks() {
    let content: Vec<u8> = (0..8192u32).map(|number| number as u8).collect();
    let fixed = vhd_fixed(&content);
    assert_eq!(read(&mut open_as(&fixed, None).unwrap(), 0, 8192), Ok(content.clone()));
    // Virtual PC before 2004 wrote a footer of 511 bytes.
    let mut short = content.clone();
    let footer = vhd_footer(2, 8192, b"vpc ", [0; 4], 1);
    short.extend(&footer[..511]);
    let mut disk = open_as(&short, None).unwrap();
    assert_eq!(disk.chain().virtual_size(), 8192, "footer-511");
    assert_eq!(read(&mut disk, 0, 8192), Ok(content.clone()), "footer-511");
    let mut planted = content.clone();
    planted[..8].copy_from_slice(b"conectix");
    assert_eq!(
        read(&mut open_as(&vhd_fixed(&planted), None).unwrap(), 0, 8192),
        Ok(planted),
        "fixed-guest-starts-conectix"
    );
    // What a guest writes must not choose how its disk is read: both readings are possible, so neither is taken.
    let mut planted = qcow2();
    planted.truncate(0x40000);
    let image = vhd_fixed(&planted);
    refuse("raw-with-qcow-magic-inside", &image, "could be qcow2 and could be vhd");
    assert_eq!(
        read(&mut open_as(&image, Some(Format::Vhd)).unwrap(), 0, 512).unwrap(),
        planted[..512],
        "forced"
    );
    // A footer that does not describe this file is a guest's data.
    let mut raw = content.clone();
    raw.extend(vhd_footer(2, 1 << 30, b"win ", [0; 4], 1));
    assert_eq!(open_as(&raw, None).unwrap().chain().layers()[0].format(), Format::Raw);
    let message = refusal("cut", open_as(&raw, Some(Format::Vhd)));
    assert!(message.contains("its file ends"), "{message}");
}

#[test]
fn two_valid_footers_of_different_disks() {
    // A guest ends its last block with a footer, and the true one behind it is lost.
    let mut image = vhd(3, [0xff; 512]);
    let end = image.len() - 512;
    put(&mut image, end, &vhd_footer(2, 4096, b"win ", [0; 4], 9));
    refuse("contradiction", &image, "could be");
}

#[test]
fn sizes_by_creator() {
    // 20 cylinders, 16 heads, 63 sectors are 10 321 920 bytes; the size field says 4 MiB.
    let geometry = [0, 20, 16, 63];
    let size = |creator: &[u8; 4], geometry: [u8; 4], field: u64| {
        let mut image = vec![0; 12 << 20];
        image.extend(vhd_footer(2, field, creator, geometry, 1));
        open_as(&image, Some(Format::Vhd)).unwrap().chain().virtual_size()
    };
    for creator in [b"vpc ", b"qemu"] {
        assert_eq!(size(creator, geometry, 4 << 20), 10_321_920);
        assert_eq!(size(creator, [255, 255, 16, 255], 4 << 20), 4 << 20, "a saturated geometry says nothing");
    }
    for creator in [b"win ", b"d2v ", b"tap\0", b"CTXS", b"wa\0\0", b"qem2", b"vbox", b"vs  ", b"\0\0\0\0"] {
        assert_eq!(size(creator, geometry, 4 << 20), 4 << 20);
    }
}

#[test]
fn fields_out_of_range() {
    for block in [0, 3, 256, 1 << 31] {
        refuse("block size", &with_header(block, 2, 0x600), "vhd block size");
    }
    refuse("bat-small", &with_header(2 << 20, 0, 0x600), "max_table_entries");
    refuse("bat-eof", &with_header(2 << 20, 2, 1 << 30), "its file ends");
    refuse("bat-neg", &with_header(2 << 20, 2, 1 << 63), "its file ends");
    refuse("bat-huge", &with_header(2 << 20, u32::MAX, 0x600), "needs 0x3fffffffc bytes");
    // Room for a larger disk, which has to be there though it is not read.
    check_content("bat-oversized", &with_header(2 << 20, 128, 0x600));
    refuse("bat-oversized, past the end", &with_header(2 << 20, 1 << 20, 0x600), "its file ends");
    let size = |size: u64| with_footer(|footer| footer[48..56].copy_from_slice(&size.to_be_bytes()));
    refuse("size-huge", &size(1 << 63), "virtual disk of a vhd");
    refuse("size-over-2T", &size(0xff00_0001 * 512), "virtual disk of a vhd");
    refuse("a small table for a large disk", &size(0xff00_0000 * 512), "max_table_entries");
    let offset = |at: u64| with_footer(|footer| footer[16..24].copy_from_slice(&at.to_be_bytes()));
    refuse("doff-eof", &offset(1 << 40), "its file ends");
    refuse("doff-self", &offset(0), "cxsparse");
    for kind in [0, 1, 5, 6, 9] {
        refuse("type", &with_footer(|footer| footer[63] = kind), "vhd disk type");
    }
    refuse("version-2", &with_footer(|footer| footer[13] = 2), "vhd file format version");
    let mut image = vhd(3, [0xff; 512]);
    image[0x200] = b'x';
    refuse("cxsparse", &image, "cxsparse");
    let mut image = vhd(3, [0xff; 512]);
    image[0x210] ^= 1;
    refuse("csum-header", &image, "checksum of the vhd dynamic disk header");
    let state = with_footer(|footer| footer[84] = 1);
    check_content("saved-state", &state);
    check_content("feat-temporary", &with_footer(|footer| footer[11] |= 1));
    assert_eq!(open_as(&state, None).unwrap().chain().layers()[0].info().warnings.len(), 1);
    // Another program wrote over the batmap that its creator says is there.
    let clobbered = with_footer(|footer| {
        footer[28..32].copy_from_slice(b"tap\0");
        footer[32..36].copy_from_slice(&0x0001_0003u32.to_be_bytes());
    });
    check_content("batmap-clobbered", &clobbered);
}

#[test]
fn block_allocation_tables() {
    let with_entry = |entry: u32| {
        let mut image = vhd(3, [0xff; 512]);
        put(&mut image, 0x604, &entry.to_be_bytes());
        image
    };
    refuse("block-eof", &with_entry(0x10_0000), "its file ends");
    refuse("block-hdr", &with_entry(0), "overlaps the image's metadata");
    refuse("block over the table", &with_entry(3), "overlaps the image's metadata");
    let image = vhd(3, [0xff; 512]);
    refuse("trunc", &image[..1 << 20], "its file ends");
    // A table far from the front, with room for a larger disk.
    let mut image = vhd(3, [0xff; 512]);
    let end = image.len() - 512;
    let footer = image.split_off(end);
    let table = image.len() as u64;
    image.extend([[0, 0, 0, 4], [0xff; 4]].concat());
    image.resize(image.len().next_multiple_of(512), 0xff);
    image.extend(footer);
    put(&mut image, 0x200, &vhd_header(2 << 20, 8, table));
    check_content("bat-far, bat-oversized", &image);
    // Two blocks, the second one first.
    let mut image = vhd(3, [0xff; 512]);
    let end = image.len() - 512;
    let footer = image.split_off(end);
    put(&mut image, 0x600, &[(end as u32 / 512).to_be_bytes(), 4u32.to_be_bytes()].concat());
    image.extend([0xff; 512]);
    image.extend(vec![0x44; 2 << 20]);
    image.extend(footer);
    let mut disk = open_as(&image, None).unwrap();
    assert_eq!(read(&mut disk, (2 << 20) - 1, 2), Ok(vec![0x44, 0x22]), "blocks-reversed");
    for block in [512, 4096, 1 << 19, 1 << 24] {
        // Small and large blocks: one block at the front of the file, all others absent.
        let footer = vhd_footer(3, 4 << 20, b"win ", [0; 4], 2);
        let mut image = footer.clone();
        let entries = (4u32 << 20).div_ceil(block);
        put(&mut image, 0x200, &vhd_header(block, entries, 0x600));
        let table = vec![0xff; (entries as usize * 4).next_multiple_of(512)];
        put(&mut image, 0x600, &table);
        let at = image.len();
        put(&mut image, 0x600, &(at as u32 / 512).to_be_bytes());
        let bitmap = (block as usize / 4096).div_ceil(1).next_multiple_of(512).max(512);
        put(&mut image, at, &vec![0xff; bitmap]);
        put(&mut image, at + bitmap, &vec![0x22; block as usize]);
        image.extend(footer);
        let mut disk = open_as(&image, None).unwrap();
        assert_eq!(read(&mut disk, u64::from(block.min(4 << 20)) - 512, 512), Ok(vec![0x22; 512]), "{block}");
        if block < 4 << 20 {
            assert_eq!(read(&mut disk, block.into(), 512), Ok(vec![0; 512]), "{block}");
        }
    }
}

/// A differencing image whose sectors 1 and 2 are its own, with one locator.
fn child(code: &[u8; 4], locator: &[u8]) -> Vec<u8> {
    let mut bitmap = [0; 512];
    bitmap[0] = 0b0110_0000;
    let mut image = vhd(4, bitmap);
    let end = image.len() - 512;
    let footer = image.split_off(end);
    let at = image.len() as u64;
    let mut header = vhd_header(2 << 20, 2, 0x600);
    put(&mut header, 576, code);
    put(&mut header, 580, &1u32.to_be_bytes());
    put(&mut header, 584, &(locator.len() as u32).to_be_bytes());
    put(&mut header, 592, &at.to_be_bytes());
    vhd_checksum(&mut header, 36);
    put(&mut image, 0x200, &header);
    image.extend(locator);
    image.resize(image.len().next_multiple_of(512), 0);
    image.extend(footer);
    image
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn differencing_disks_read_sector_by_sector() {
    let parent = vhd_fixed(&vec![0x99; 4 << 20]);
    let locators: [(&[u8; 4], Vec<u8>); 7] = [
        (b"W2ru", utf16(".\\parent.vhd")),
        (b"W2ku", utf16("C:\\vm\\disks\\parent.vhd")),
        (b"MacX", b"file:///vhds/parent.vhd".to_vec()),
        (b"MacX", b"file://./parent%2Evhd".to_vec()),
        (b"Wi2r", b".\\parent.vhd".to_vec()),
        (b"Wi2k", b"D:\\parent.vhd".to_vec()),
        (b"\0\0\0\0", Vec::new()),
    ];
    for (code, locator) in locators {
        let child = child(code, &locator);
        let mut disk = open_among(&[("child.vhd", &child), ("parent.vhd", &parent)], None)
            .unwrap_or_else(|error| panic!("{}: {error}", String::from_utf8_lossy(code)));
        let expect = [[0x99; 512], [0x22; 512], [0x22; 512], [0x99; 512]].concat();
        assert_eq!(read(&mut disk, 0, 2048), Ok(expect));
        assert_eq!(read(&mut disk, (2 << 20) - 512, 1024), Ok(vec![0x99; 1024]));
    }
}

#[test]
fn a_chain_of_three() {
    // The identifier of `vhd` is all 2; the middle one's parent is all 1, and the top one's the middle one.
    let (base, middle) = (vhd_fixed(&vec![0x99; 4 << 20]), child(b"W2ru", &utf16(".\\parent.vhd")));
    let mut bitmap = [0; 512];
    bitmap[0] = 0b0010_0100;
    let mut top = vhd(4, bitmap);
    put(&mut top, 0xa00, &vec![0x77; 2 << 20]);
    let mut header = vhd_header(2 << 20, 2, 0x600);
    header[40..56].fill(2);
    let name: Vec<u8> = "middle.vhd".encode_utf16().flat_map(u16::to_be_bytes).collect();
    put(&mut header, 64, &name);
    vhd_checksum(&mut header, 36);
    put(&mut top, 0x200, &header);
    let files = [("top.vhd", &top[..]), ("middle.vhd", &middle), ("parent.vhd", &base)];
    let mut disk = open_among(&files, None).unwrap();
    assert_eq!(disk.chain().layers().len(), 3);
    let sectors = read(&mut disk, 0, 7 * 512).unwrap();
    let first: Vec<u8> = sectors.chunks(512).map(|sector| sector[0]).collect();
    assert_eq!(first, [0x99, 0x22, 0x77, 0x99, 0x99, 0x77, 0x99], "diff-chain3");
}

#[test]
fn a_parent_without_an_identifier_is_a_raw_disk() {
    // As XenServer's libvhd writes it. What the raw disk begins with is its guest's.
    let mut child = child(b"MacX", b"file://./base.raw");
    let mut header = child[0x200..0x600].to_vec();
    header[40..56].fill(0);
    vhd_checksum(&mut header, 36);
    put(&mut child, 0x200, &header);
    let mut base = qcow2();
    base.resize(4 << 20, 0);
    let mut disk = open_among(&[("child.vhd", &child), ("base.raw", &base)], None).unwrap();
    assert_eq!(disk.chain().layers()[1].format(), Format::Raw);
    assert_eq!(read(&mut disk, 0, 4), Ok(b"QFI\xfb".to_vec()));
    assert_eq!(read(&mut disk, 512, 1024), Ok(vec![0x22; 1024]));
}

#[test]
fn parents_that_are_not_the_right_one() {
    let child = child(b"W2ru", &utf16(".\\parent.vhd"));
    let message = refusal("missing", open_among(&[("child.vhd", &child)], None));
    assert!(message.contains("parent.vhd"), "{message}");
    let mut other = vhd_fixed(&vec![0x99; 4 << 20]);
    let end = other.len() - 512;
    other[end + 68] = 7;
    vhd_checksum(&mut other[end..], 64);
    let message =
        refusal("uuid-mismatch", open_among(&[("child.vhd", &child), ("parent.vhd", &other)], None));
    assert!(message.contains("not the parent"), "{message}");
    let message = refusal("self", open_among(&[("parent.vhd", &child)], None));
    assert!(message.contains("refers to itself"), "{message}");
    let hostile = self::child(b"MacX", b"file:///etc/passwd");
    let mut opening = thinorigin_formats::Opening::new(hostile.len() as u64, Default::default());
    let parent = loop {
        match opening.poll().unwrap() {
            thinorigin_formats::Progress::Done(opened) => break opened.parent.unwrap(),
            thinorigin_formats::Progress::Need(thinorigin_formats::Ask::Bytes { at, len, .. }) => {
                opening.supply_bytes(hostile[at as usize..at as usize + len as usize].to_vec());
            }
            other => panic!("{other:?}"),
        }
    };
    // The names are handed over as they are, the local ones first.
    assert_eq!(parent.names, ["parent.vhd", "passwd", "/etc/passwd"]);
    assert_eq!((parent.format, parent.check), (Some(Format::Vhd), ParentCheck::Id([1; 16])));
}
