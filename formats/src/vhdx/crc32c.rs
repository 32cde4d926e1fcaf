//! CRC-32C (Castagnoli), the checksum of all vhdx structures.

/// The reflected polynomial.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Remainders of all bytes.
const TABLE: [u32; 256] = table();

#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    reason = "evaluated by the compiler, where an overrun would be a compile error"
)]
const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            remainder = (remainder >> 1) ^ if remainder & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
}

/// The checksum of a structure whose own checksum field, four bytes at offset 4, counts as zeros.
pub(crate) fn of_structure(bytes: &[u8]) -> u32 {
    let masked = bytes.iter().enumerate().map(|(at, &byte)| if (4..8).contains(&at) { 0 } else { byte });
    !masked.fold(u32::MAX, |crc, byte| {
        let [low, ..] = (crc ^ u32::from(byte)).to_le_bytes();
        (crc >> 8) ^ TABLE.get(usize::from(low)).copied().unwrap_or(0)
    })
}
