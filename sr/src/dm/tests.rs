//! Tables and statuses as the kernel words them.

use super::*;

fn number(text: &str) -> DeviceNumber {
    text.parse().unwrap()
}

#[test]
fn targets_are_read_back_as_written() {
    for target in [
        Target::Linear { device: number("43:0"), offset: 8 },
        Target::Zero,
        Target::Thin { pool: number("253:2"), id: 7, origin: None },
        Target::Thin { pool: number("253:2"), id: 7, origin: Some(number("253:9")) },
        Target::Other { kind: "thin-pool".into(), parameters: "253:0 253:1 128 0 0".into() },
    ] {
        let (kind, parameters) = target.words();
        assert_eq!(Target::parse(kind, &parameters), target);
    }
    // A known target with parameters that we do not write is somebody else's, and must not look like ours.
    for (kind, parameters) in
        [("linear", "43:0"), ("linear", "/dev/sda 0"), ("thin", "253:2 7 253:9 more"), ("thin", "")]
    {
        assert!(matches!(Target::parse(kind, parameters), Target::Other { .. }));
    }
}

#[test]
fn a_table_says_its_length_and_its_lines() {
    let table = Table(vec![
        Segment { sectors: 100, target: Target::Linear { device: number("43:0"), offset: 0 } },
        Segment { sectors: 28, target: Target::Zero },
    ]);
    assert_eq!(table.bytes(), 128 * 512);
    assert_eq!(table.to_string(), "0 100 linear 43:0 0, 100 28 zero ");
    assert_eq!(table.only(), None);
}

#[test]
fn pool_status_in_every_mode() {
    let line = "3 15/2048 27/4800 - rw discard_passdown error_if_no_space - 1024";
    let status = PoolStatus::parse(line).unwrap();
    assert_eq!((status.transaction_id, status.data_used, status.data_total), (3, 27, 4800));
    assert_eq!((status.metadata_used, status.metadata_total), (15, 2048));
    assert_eq!((status.mode, status.needs_check, status.held_root), (PoolMode::ReadWrite, false, None));
    let line =
        "3 15/2048 4800/4800 77 out_of_data_space no_discard_passdown queue_if_no_space needs_check 1024";
    let status = PoolStatus::parse(line).unwrap();
    assert_eq!(
        (status.mode, status.needs_check, status.held_root),
        (PoolMode::OutOfDataSpace, true, Some(77))
    );
    assert_eq!(PoolStatus::parse("Fail").unwrap().mode, PoolMode::Failed);
    for line in ["", "8", "8 3/", "1024 2047", "1 1/1 1/1 - wr", "-1 1/1 1/1 - rw"] {
        assert_eq!(PoolStatus::parse(line), None, "{line:?}");
    }
}

#[test]
fn thin_status() {
    assert_eq!(ThinStatus::parse("384 2047").unwrap().mapped, 384 * 512);
    assert_eq!(ThinStatus::parse("0 -").unwrap().mapped, 0);
    assert_eq!(ThinStatus::parse("Fail"), None);
    assert_eq!(ThinStatus::parse("18446744073709551615 1"), None);
}
