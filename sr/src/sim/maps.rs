//! What disks map, and how they differ, on the simulated world.

use super::CHUNK;
use super::tests::{Op, furnished};
use crate::Controller;
use crate::error::ErrorKind;

#[test]
fn a_map_composes_the_disk_and_its_template() {
    let rig = furnished();
    rig.sim.borrow_mut().write("a", 1, 98);
    let mut smctl = rig.controller();
    Op::Resize("a".into(), 6).run(&mut smctl).unwrap();
    let shown = |smctl: &mut Controller, vdi: &str| -> Vec<(u64, u64, usize, bool)> {
        let extents = smctl.vdi_map("sr", vdi).unwrap();
        extents.iter().map(|it| (it.start / CHUNK, it.length / CHUNK, it.depth, it.data)).collect()
    };
    assert_eq!(shown(&mut smctl, "a"), [(0, 2, 0, true), (2, 4, 0, false)]);
    assert_eq!(shown(&mut smctl, "b"), [(0, 2, 1, true)], "a clone of a snapshot from before the writes");
    assert_eq!(shown(&mut smctl, "t"), [(0, 2, 0, true)]);
    rig.sim.borrow().check().unwrap();
    let physical =
        |smctl: &mut Controller, vdi: &str| smctl.vdi_info("sr", vdi).unwrap().physical_utilisation;
    assert_eq!(physical(&mut smctl, "a"), Some(2 * CHUNK));
    assert_eq!(physical(&mut smctl, "b"), Some(0));
    smctl.vdi_detach("sr", "a").unwrap();
    assert_eq!(physical(&mut smctl, "a"), Some(2 * CHUNK), "detached, it still tells");
    for vdi in smctl.vdi_list("sr").unwrap() {
        assert_eq!(vdi, smctl.vdi_info("sr", &vdi.name).unwrap());
    }
    assert_eq!(smctl.sr_info("sr").unwrap().physical_allocation, Some(2 * CHUNK));
    let shown = |smctl: &mut Controller, vdi: &str| {
        let info = smctl.vdi_info("sr", vdi).unwrap();
        info.from_template.zip(info.from_template_percent)
    };
    assert_eq!(shown(&mut smctl, "b"), Some((2 * CHUNK, 100)));
    assert_eq!(shown(&mut smctl, "t"), None, "a template shows none");
    rig.sim.borrow_mut().write("b", 0, 5);
    assert_eq!(shown(&mut smctl, "b"), Some((CHUNK, 50)));
    Op::Flatten("b".into()).run(&mut smctl).unwrap();
    assert_eq!(shown(&mut smctl, "b"), None);
    assert_eq!(physical(&mut smctl, "b"), Some(2 * CHUNK));
}

#[test]
fn a_difference_is_what_was_written_between() {
    let rig = furnished();
    rig.sim.borrow_mut().write("a", 1, 98);
    let mut smctl = rig.controller();
    let changed = |smctl: &mut Controller, a: &str, b: &str| -> Vec<(u64, u64)> {
        let changed = smctl.vdi_diff("sr", a, b).unwrap();
        changed.iter().map(|it| (it.start / CHUNK, it.length / CHUNK)).collect()
    };
    assert_eq!(changed(&mut smctl, "a1", "a"), [(0, 2)]);
    assert_eq!(changed(&mut smctl, "a", "a1"), [(0, 2)]);
    assert_eq!(changed(&mut smctl, "t", "a"), [(0, 2)]);
    assert_eq!(changed(&mut smctl, "a", "a"), []);
    assert_eq!(changed(&mut smctl, "a1", "b"), []);
    Op::Snapshot("a".into(), "a2".into()).run(&mut smctl).unwrap();
    rig.sim.borrow_mut().write("a", 1, 97);
    assert_eq!(changed(&mut smctl, "a2", "a"), [(1, 1)]);
    Op::Create("empty".into()).run(&mut smctl).unwrap();
    for (a, b) in [("a", "empty"), ("t", "unused"), ("unused", "a")] {
        let refused = smctl.vdi_diff("sr", a, b).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Refused);
        assert!(refused.message.contains("not the same template"), "{refused}");
    }
    rig.sim.borrow().check().unwrap();
}

#[test]
fn a_reader_that_dies_leaves_no_metadata_snapshot() {
    for fuel in 0.. {
        let rig = furnished();
        rig.sim.borrow_mut().fuel = Some(fuel);
        let result = rig.controller().vdi_map("sr", "a");
        let died = rig.sim.borrow().dead;
        rig.sim.borrow_mut().restart(false);
        if !died {
            result.unwrap();
            assert_eq!(fuel, 4, "a snapshot is reserved and released");
            return;
        }
        // The next reader goes on, and whoever attaches cleans up.
        if fuel % 2 == 0 {
            assert_eq!(rig.controller().vdi_map("sr", "a").unwrap().len(), 2);
        } else {
            rig.controller().sr_attach("sr").unwrap();
        }
        rig.sim.borrow().check().unwrap_or_else(|e| panic!("dead at {fuel}: {e}"));
    }
}
