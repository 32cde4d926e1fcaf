//! A small vhdx built byte by byte (MS-VHDX), to be damaged by the tests.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use super::images::put;

pub(crate) const MIB: usize = 1 << 20;

/// Where things are in [`Vhdx::build`]: the region tables, the log, the block allocation table, the metadata, and
/// the only block that is there.
pub(crate) const REGIONS: [usize; 2] = [192 << 10, 256 << 10];
pub(crate) const LOG: usize = MIB;
pub(crate) const BAT: usize = 2 * MIB;
pub(crate) const METADATA: usize = 3 * MIB;
pub(crate) const BLOCK: usize = 4 * MIB;

/// An entry of the table: the block at [`BLOCK`] is present.
pub(crate) const PRESENT: u64 = BLOCK as u64 | 6;

/// A GUID as it is stored, from its usual text.
pub(crate) fn guid(text: &str) -> [u8; 16] {
    let digits: Vec<u8> = text.bytes().filter(|&byte| byte != b'-').collect();
    let mut bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    bytes[0..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes.try_into().unwrap()
}

/// Writes the CRC-32C of `bytes` into them at offset 4.
pub(crate) fn sign(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let crc = bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    });
    bytes[4..8].copy_from_slice(&(!crc).to_le_bytes());
}

/// What a vhdx says of itself. Its content is the block of 0x88 bytes for guest offset 0.
pub(crate) struct Vhdx {
    pub(crate) version: u16,
    pub(crate) log_guid: [u8; 16],
    /// Id, place, length and whether it is required, of each region.
    pub(crate) regions: Vec<([u8; 16], u64, u32, bool)>,
    /// Id, bytes and whether it is required, of each item of metadata.
    pub(crate) items: Vec<([u8; 16], Vec<u8>, bool)>,
    pub(crate) table: Vec<u64>,
}

/// Number of each item in [`Vhdx::items`].
pub(crate) const PARAMETERS: usize = 0;
pub(crate) const SIZE: usize = 1;
pub(crate) const LOGICAL: usize = 2;

impl Vhdx {
    /// A dynamic disk of 4 MiB in blocks of 1 MiB.
    pub(crate) fn new() -> Self {
        let item = |text, bytes: &[u8]| (guid(text), bytes.to_vec(), true);
        Vhdx {
            version: 1,
            log_guid: [0; 16],
            regions: vec![
                (guid("2dc27766-f623-4200-9d64-115e9bfd4a08"), BAT as u64, MIB as u32, true),
                (guid("8b7ca206-4790-4b9a-b8fe-575f050f886e"), METADATA as u64, MIB as u32, true),
            ],
            items: vec![
                item("caa16737-fa36-4d43-b3b6-33f0aa44e76b", &[0, 0, 0x10, 0, 0, 0, 0, 0]),
                item("2fa54224-cd1b-4876-b211-5dbed83bf4b8", &(4 * MIB as u64).to_le_bytes()),
                item("8141bf1d-a96f-4709-ba47-f233a8faab5f", &512u32.to_le_bytes()),
                item("cda348c7-445d-4471-9cc9-e9885251c556", &4096u32.to_le_bytes()),
            ],
            table: vec![PRESENT, 0, 0, 0],
        }
    }

    /// The same with another item.
    pub(crate) fn with(mut self, item: usize, bytes: &[u8]) -> Self {
        self.items[item].1 = bytes.to_vec();
        self
    }

    /// A child of the parent whose data-write id is `linkage`, found as `parent.vhdx`.
    pub(crate) fn child(mut self, linkage: &str) -> Self {
        self.items[PARAMETERS].1[4] = 2;
        let pairs = [("parent_linkage", linkage), ("relative_path", ".\\parent.vhdx")];
        let mut locator = guid("b04aefb7-d19e-4a81-b789-25b8e9445913").to_vec();
        locator.extend([0, 0, 2, 0]);
        let (mut at, mut strings) = (20 + 12 * 2, Vec::new());
        for (key, value) in pairs {
            let [key, value] =
                [key, value].map(|text| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>());
            for place in [at, at + key.len()] {
                locator.extend((place as u32).to_le_bytes());
            }
            for len in [key.len(), value.len()] {
                locator.extend((len as u16).to_le_bytes());
            }
            at += key.len() + value.len();
            strings.extend([key, value].concat());
        }
        locator.extend(strings);
        self.items.push((guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c"), locator, true));
        self
    }

    /// The file. Its data-write id is all 7.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut image = vec![0; BLOCK];
        put(&mut image, 0, b"vhdxfile");
        let mut header = vec![0; 4096];
        put(&mut header, 0, b"head");
        header[32..48].fill(7);
        put(&mut header, 48, &self.log_guid);
        put(&mut header, 66, &self.version.to_le_bytes());
        put(&mut header, 68, &(MIB as u32).to_le_bytes());
        put(&mut header, 72, &(LOG as u64).to_le_bytes());
        for (sequence, at) in [(5u64, 64 << 10), (6, 128 << 10)] {
            put(&mut header, 8, &sequence.to_le_bytes());
            sign(&mut header);
            put(&mut image, at, &header);
        }
        let mut regions = vec![0; 64 << 10];
        put(&mut regions, 0, b"regi");
        put(&mut regions, 8, &(self.regions.len() as u32).to_le_bytes());
        for (number, (id, at, len, required)) in self.regions.iter().enumerate() {
            let entry = [&id[..], &at.to_le_bytes(), &len.to_le_bytes(), &u32::from(*required).to_le_bytes()];
            put(&mut regions, 16 + 32 * number, &entry.concat());
        }
        sign(&mut regions);
        REGIONS.iter().for_each(|&at| put(&mut image, at, &regions));
        put(&mut image, METADATA, b"metadata\0\0");
        put(&mut image, METADATA + 10, &(self.items.len() as u16).to_le_bytes());
        let mut offset = 64 << 10;
        for (number, (id, bytes, required)) in self.items.iter().enumerate() {
            let [at, len, flags] =
                [offset, bytes.len(), usize::from(*required) << 2].map(|value| value as u32);
            let entry = [&id[..], &at.to_le_bytes(), &len.to_le_bytes(), &flags.to_le_bytes(), &[0; 4]];
            put(&mut image, METADATA + 32 + 32 * number, &entry.concat());
            put(&mut image, METADATA + offset, bytes);
            offset += bytes.len().next_multiple_of(8);
        }
        for (number, entry) in self.table.iter().enumerate() {
            put(&mut image, BAT + 8 * number, &entry.to_le_bytes());
        }
        image.extend(vec![0x88; MIB]);
        image
    }
}

/// One write of a log entry.
pub(crate) enum LogWrite {
    /// A sector of 4096 bytes.
    Data(u64, Vec<u8>),
    /// Zeros at an offset, so many.
    Zero(u64, u64),
}

/// An entry of the log `guid` (MS-VHDX 2.3.1), the only one of its sequence, that begins at offset 0 of the log.
pub(crate) fn log_entry(guid: [u8; 16], sequence: u64, flushed: u64, writes: &[LogWrite]) -> Vec<u8> {
    let mut entry = vec![0; 4096];
    put(&mut entry, 0, b"loge");
    put(&mut entry, 16, &sequence.to_le_bytes());
    put(&mut entry, 24, &(writes.len() as u32).to_le_bytes());
    put(&mut entry, 32, &guid);
    put(&mut entry, 48, &flushed.to_le_bytes());
    put(&mut entry, 56, &flushed.to_le_bytes());
    for (number, write) in writes.iter().enumerate() {
        let at = 64 + 32 * number;
        let descriptor = match write {
            LogWrite::Zero(target, len) => {
                [&b"zero"[..], &[0; 4], &len.to_le_bytes(), &target.to_le_bytes()].concat()
            }
            LogWrite::Data(target, bytes) => {
                let [low, high] = [sequence as u32, (sequence >> 32) as u32].map(u32::to_le_bytes);
                entry.extend([&b"data"[..], &high, &bytes[8..4092], &low].concat());
                [&b"desc"[..], &bytes[4092..], &bytes[..8], &target.to_le_bytes()].concat()
            }
        };
        put(&mut entry, at, &descriptor);
        put(&mut entry, at + 24, &sequence.to_le_bytes());
    }
    let len = entry.len() as u32;
    put(&mut entry, 8, &len.to_le_bytes());
    sign(&mut entry);
    entry
}
