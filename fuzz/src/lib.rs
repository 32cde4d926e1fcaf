//! What the fuzz targets share: a driver that checks, at every step, what the parsers promise.

pub mod sparse;

use thinorigin_formats::{
    Ask, Format, Layer, Located, Mapping, Opened, Opening, Options, Progress, Run, Runs, TableRef, limits,
};

/// Opens `image` as `format`, with every name it asks for answered by `other`. Checks that each ask is bounded and
/// lies in its file, and that there are not too many.
pub fn open(image: &[u8], other: &[u8], format: Option<Format>) -> Option<Opened> {
    let mut opening = Opening::new(image.len() as u64, Options { format, snapshot: None });
    let mut files: Vec<&[u8]> = vec![image];
    let (mut asks, mut total) = (0, 0u64);
    loop {
        asks += 1;
        assert!(asks <= limits::OPEN_ASKS + 1, "too many asks");
        match opening.poll() {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return None;
            }
            Ok(Progress::Done(opened)) => return Some(opened),
            Ok(Progress::Need(Ask::File { index, name, .. })) => {
                assert_eq!(usize::from(index.0), files.len(), "indices follow the order of asking");
                assert!(!name.is_empty() && !name.chars().any(char::is_control), "{name:?}");
                files.push(other);
                opening.supply_file(other.len() as u64);
            }
            Ok(Progress::Need(Ask::Bytes { file, at, len })) => {
                let file = files[usize::from(file.0)];
                assert!(len > 0 && len <= limits::ROOT_BYTES, "{len} bytes asked for");
                let end = at.checked_add(len.into()).expect("the range ends");
                assert!(end <= file.len() as u64, "{at:#x}+{len:#x} is outside the file");
                total += u64::from(len);
                assert!(total <= limits::OPEN_BYTES, "{total} bytes read to open");
                opening.supply_bytes(file[at as usize..end as usize].to_vec());
            }
        }
    }
}

/// Walks the map of `layer` from `at`, at most `steps` runs, and checks every answer. Files are `image` and, for all
/// other indices, `other`.
pub fn walk(layer: &dyn Layer, image: &[u8], other: &[u8], mut at: u64, steps: usize) {
    let size = layer.virtual_size();
    assert!(layer.locate(size).is_err(), "past the end there is nothing");
    for _ in 0..steps {
        if at >= size {
            return;
        }
        let run = match layer.locate(at) {
            Err(_) => return,
            Ok(Located::Run(run)) => run,
            Ok(Located::Table(table)) => {
                check_table(&table, at, size);
                let file = if table.file.0 == 0 { image } else { other };
                let start = usize::try_from(table.at).unwrap_or(usize::MAX).min(file.len());
                let end = start.saturating_add(table.len as usize).min(file.len());
                match layer.decode(table, &file[start..end]) {
                    Err(_) => return,
                    Ok(runs) => {
                        check_runs(&runs, &table);
                        runs.find(at, u64::MAX).expect("the table's runs cover what was asked")
                    }
                }
            }
        };
        check_run(&run, at, size);
        at = run.end();
    }
}

fn check_table(table: &TableRef, at: u64, size: u64) {
    assert!(table.len > 0 && table.len <= limits::LEAF_BYTES, "{table:?}");
    assert!(table.covers > 0 && table.start <= at && at - table.start < table.covers, "{table:?} for {at:#x}");
    assert!(table.start + table.covers <= size, "{table:?} in a disk of {size:#x}");
}

fn check_runs(runs: &Runs, table: &TableRef) {
    let mut next = table.start;
    for run in runs {
        assert!(run.start == next && run.len > 0, "{run:?} at {next:#x}");
        next = run.end();
    }
    assert_eq!(next, table.start + table.covers, "{table:?} is covered");
    assert!(runs.footprint() <= 32 << 20, "{} bytes of runs", runs.footprint());
}

fn check_run(run: &Run, at: u64, size: u64) {
    assert!(run.start <= at && at < run.end() && run.end() <= size, "{run:?} for {at:#x} of {size:#x}");
    if let Mapping::Compressed(unit) = run.mapping {
        assert!(unit.decoded > 0 && unit.decoded <= limits::UNIT_BYTES, "{unit:?}");
        assert!(unit.len <= 2 * limits::UNIT_BYTES, "{unit:?}");
        assert!(unit.guest <= run.start && run.end() <= unit.guest + u64::from(unit.decoded), "{run:?}");
    }
}

/// All formats, to be chosen by a byte of input; the last choice probes.
pub fn format(choice: u8) -> Option<Format> {
    let all = [
        Some(Format::Raw),
        Some(Format::Qcow2),
        Some(Format::Vhd),
        Some(Format::Vmdk),
        Some(Format::Vhdx),
        None,
        Some(Format::Qcow),
    ];
    all[usize::from(choice) % all.len()]
}
