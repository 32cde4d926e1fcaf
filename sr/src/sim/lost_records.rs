//! Records that are lost and brought back, on the simulated world.

use super::tests::{Op, detached, furnished};
use super::{Event, Rig};
use crate::controller::SrRestore;
use crate::error::ErrorKind;
use crate::names;
use uuid::Uuid;

/// Takes the records away, and perhaps the volume that they were on.
fn lose_records(rig: &Rig, volume: bool) {
    let mut sim = rig.sim.borrow_mut();
    sim.records = None;
    if volume {
        sim.group.as_mut().unwrap().2.retain(|lv| !lv.name.ends_with("-meta"));
        sim.devices.retain(|name, _| !name.ends_with("-meta"));
    }
}

#[test]
fn lost_records_are_restored_from_every_point_of_death() {
    for (volume, reboot) in [(false, false), (true, false), (true, true)] {
        for fuel in 0.. {
            let rig = furnished();
            let before = rig.sim.borrow().check().unwrap();
            let dump = rig.controller().sr_dump("sr").unwrap();
            let restore = || SrRestore { dump: dump.clone(), leave_unknown: false };
            lose_records(&rig, volume);
            rig.sim.borrow_mut().fuel = Some(fuel);
            let result = rig.controller().sr_restore(restore());
            let died = rig.sim.borrow().dead;
            rig.sim.borrow_mut().restart(reboot);
            if died {
                rig.controller().sr_restore(restore()).unwrap_or_else(|e| panic!("dead at {fuel}: {e}"));
            } else {
                result.unwrap();
            }
            let now = rig.sim.borrow().check().unwrap_or_else(|e| panic!("dead at {fuel}: {e}"));
            if !died && reboot {
                break;
            }
            assert_eq!(now, if reboot { detached(before) } else { before }, "dead at {fuel}");
            // What is made next gets along with what is there.
            Op::Clone("a1".into(), "next".into()).run(&mut rig.controller()).unwrap();
            rig.sim.borrow().check().unwrap();
            if !died {
                assert!(fuel >= if volume { 4 } else { 2 }, "{fuel} points");
                break;
            }
        }
    }
}

#[test]
fn records_are_restored_to_the_pool_that_they_are_of_only() {
    let refused = |change: &dyn Fn(&Rig)| {
        let rig = furnished();
        let dump = rig.controller().sr_dump("sr").unwrap();
        change(&rig);
        let thins = rig.sim.borrow().thins.clone();
        let error = rig.controller().sr_restore(SrRestore { dump, leave_unknown: false }).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Refused, "{error}");
        assert_eq!(rig.sim.borrow().thins, thins);
        error.message
    };
    assert!(
        refused(&|rig| Op::Create("x".into()).run(&mut rig.controller()).unwrap()).contains("other ones")
    );
    let gone = refused(&|rig| {
        Op::Destroy("b".into()).run(&mut rig.controller()).unwrap();
        lose_records(rig, false);
    });
    assert!(gone.contains("lacks 1 of the dump's 3 thin devices, as 3 of VDI 'b'"), "{gone}");
    let unknown = refused(&|rig| {
        Op::Create("x".into()).run(&mut rig.controller()).unwrap();
        lose_records(rig, true);
    });
    assert!(unknown.contains("1 thin devices that the dump does not know"), "{unknown}");
    let early = refused(&|rig| {
        lose_records(rig, false);
        rig.sim.borrow_mut().transaction_id -= 1;
    });
    assert!(early.contains("before the dump"), "{early}");
    // Unknown devices may be left, and then their ids are not given to others.
    let rig = furnished();
    let dump = rig.controller().sr_dump("sr").unwrap();
    Op::Create("x".into()).run(&mut rig.controller()).unwrap();
    lose_records(&rig, false);
    rig.controller().sr_restore(SrRestore { dump, leave_unknown: true }).unwrap();
    Op::Create("y".into()).run(&mut rig.controller()).unwrap();
    assert!(rig.sim.borrow().check().unwrap_err().contains("{1, 2, 3, 5}"), "the ids of the records");
}

/// A furnished SR with a preallocated disk and a template that was copied into it.
fn with_volumes() -> Rig {
    let rig = furnished();
    for op in [Op::Preallocate("disk".into()), Op::Localise("unused".into())] {
        op.run(&mut rig.controller()).unwrap();
    }
    rig
}

#[test]
fn volumes_of_vdis_are_what_the_dump_says_or_nothing_is_restored() {
    let rig = with_volumes();
    let before = rig.sim.borrow().check().unwrap();
    let dump = rig.controller().sr_dump("sr").unwrap();
    let restore = || SrRestore { dump: dump.clone(), leave_unknown: false };
    lose_records(&rig, true);
    rig.controller().sr_restore(restore()).unwrap();
    assert_eq!(rig.sim.borrow().check().unwrap(), before, "both volumes are somebody's again");

    let refused = |rig: &Rig, restore: SrRestore| {
        let before = rig.world();
        let error = rig.controller().sr_restore(restore).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Refused, "{error}");
        assert_eq!(rig.world(), before, "nothing has changed");
        error.message
    };
    for (lost, vdi) in [("-thick-", "'disk'"), ("-local-", "'unused'")] {
        let rig = with_volumes();
        let dump = rig.controller().sr_dump("sr").unwrap();
        lose_records(&rig, false);
        rig.happens(Event::VolumeGoes(lost));
        let said = refused(&rig, SrRestore { dump, leave_unknown: false });
        assert!(said.contains("lacks smctl-") && said.contains(lost) && said.contains(vdi), "{said}");
    }
    // A disk that was made after the dump would be taken for debris.
    let rig = furnished();
    let dump = rig.controller().sr_dump("sr").unwrap();
    Op::Preallocate("later".into()).run(&mut rig.controller()).unwrap();
    lose_records(&rig, false);
    let said = refused(&rig, SrRestore { dump: dump.clone(), leave_unknown: false });
    assert!(said.contains("-thick-") && said.contains("does not know"), "{said}");
    // What only has such a name is nobody's business.
    rig.happens(Event::VolumeGoes("-thick-"));
    rig.happens(Event::VolumeAppears(names::thick_lv(dump.sr.uuid, Uuid::new_v4()), "linear"));
    rig.controller().sr_restore(SrRestore { dump, leave_unknown: false }).unwrap();
    assert!(rig.world().contains("-thick-"), "it is still there");
}
