//! Images that name other files, built byte by byte.

/// A qcow2 of version 3 that names `backing`, or an external data file if `data_file` is set.
pub(crate) fn qcow2(name: &str, data_file: bool) -> Vec<u8> {
    let mut image = vec![0; 0x30000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &16u32.to_be_bytes());
    put(24, &(1u64 << 20).to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &0x10000u64.to_be_bytes());
    put(72, &u64::from(data_file).wrapping_mul(4).to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    if data_file {
        put(104, &0x4441_5441u32.to_be_bytes());
        put(108, &(name.len() as u32).to_be_bytes());
        put(112, name.as_bytes());
    } else {
        put(8, &0x400u64.to_be_bytes());
        put(16, &(name.len() as u32).to_be_bytes());
        put(0x400, name.as_bytes());
    }
    image
}

/// A vmdk descriptor with this extent line.
pub(crate) fn descriptor(extent: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n{extent}\n"
    )
}

/// A vmdk descriptor whose parent is called `name`, and which has nothing itself.
pub(crate) fn descriptor_over(name: &str) -> String {
    let hint = format!("parentCID=00000001\nparentFileNameHint=\"{name}\"");
    descriptor("RW 4 ZERO").replace("parentCID=ffffffff", &hint)
}

/// A differencing vhd of 2 MiB without a block of its own. Its parent is called `name` in a locator of the kind `code`, and
/// has no other name.
pub(crate) fn vhd_over(code: &[u8; 4], name: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 2048 + 1536];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let signed = |mut bytes: Vec<u8>, at: usize| {
        let sum = bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(byte.into()));
        bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
        bytes
    };
    let mut footer =
        [&b"conectix"[..], &2u32.to_be_bytes(), &0x10000u32.to_be_bytes(), &512u64.to_be_bytes()].concat();
    footer.resize(512, 0);
    footer[28..32].copy_from_slice(b"win ");
    footer[48..56].copy_from_slice(&(2u64 << 20).to_be_bytes());
    footer[60..64].copy_from_slice(&4u32.to_be_bytes());
    let footer = signed(footer, 64);
    let mut header =
        [&b"cxsparse"[..], &[0xff; 8], &1536u64.to_be_bytes(), &0x10000u32.to_be_bytes()].concat();
    header.extend([1u32.to_be_bytes(), (2u32 << 20).to_be_bytes()].concat());
    header.resize(1024, 0);
    header[40..56].fill(1);
    header[576..580].copy_from_slice(code);
    header[584..588].copy_from_slice(&(name.len() as u32).to_be_bytes());
    header[592..600].copy_from_slice(&2048u64.to_be_bytes());
    put(0, &footer);
    put(512, &signed(header, 36));
    put(1536, &[0xff; 4]);
    put(2048, name);
    put(2048 + 1024, &footer);
    image
}
