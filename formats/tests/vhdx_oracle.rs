//! Every kind of vhdx that qemu-img can write holds what qemu-img says it does. There is no map to compare: qemu
//! calls all of a vhdx data.

mod common;

use common::{assert_reads, convert, disk_content, has, open};
use tempfile::TempDir;
use thinorigin_formats::{Format, Options};

#[test]
fn fixed_and_dynamic() {
    if !has("fixed_and_dynamic", "qemu-img") {
        return;
    }
    let directory = TempDir::new().unwrap();
    let content = disk_content((21 << 20) + 512, 11);
    let dynamic =
        ["1M", "2M", "8M", "32M", "256M"].map(|block| format!("subformat=dynamic,block_size={block}"));
    let others = ["subformat=fixed,block_size=1M".to_owned(), "block_state_zero=off".to_owned()];
    for options in dynamic.into_iter().chain(others) {
        convert(directory.path(), &content, "a.vhdx", "vhdx", &["-o", &options]);
        let mut disk = open(directory.path(), "a.vhdx", Options::default());
        assert_eq!(disk.chain().layers()[0].format(), Format::Vhdx, "{options}: probed");
        // qemu-img pads the size to whole sectors of the content, which has them already.
        assert_reads(&mut disk, &content, &options);
    }
}
