//! Preallocated disks and growing pools, from every point of death.

use super::tests::{Op, die_everywhere, furnished, to_the_end};
use super::{CHUNK, Event, Mutation, Rig};
use crate::controller::{SrDestroy, SrGrow, VdiCreate, Work};
use crate::error::ErrorKind;
use crate::names;
use uuid::Uuid;

fn thick() -> [Op; 1] {
    [Op::Preallocate("disk".into())]
}

/// A furnished SR whose pool is nearly full.
fn nearly_full() -> Rig {
    let rig = furnished();
    let mut sim = rig.sim.borrow_mut();
    sim.ballast = sim.pool_chunks() * 85 / 100;
    drop(sim);
    rig
}

#[test]
fn preallocated_disks_converge_from_every_point_of_death() {
    let points = die_everywhere(&thick()[0], &[], Mutation::None).unwrap();
    assert!(points >= 8, "a volume, zeros, a sync, and a record: {points}");
    let attached = [thick()[0].clone(), Op::Attach("disk".into())];
    for op in [Op::Resize("disk".into(), 4), Op::Detach("disk".into())] {
        die_everywhere(&op, &attached, Mutation::None).unwrap();
    }
    for op in [Op::Resize("disk".into(), 4), Op::Attach("disk".into()), Op::Destroy("disk".into())] {
        die_everywhere(&op, &thick(), Mutation::None).unwrap();
    }
    // The tests of the test: zeros that a loss of power may take are noticed.
    for op in [&thick()[0], &Op::Resize("disk".into(), 4)] {
        let prepare = if matches!(op, Op::Resize(..)) { &thick()[..] } else { &[] };
        let lost = die_everywhere(op, prepare, Mutation::LostSync).unwrap_err();
        assert!(lost.contains("238"), "{lost}");
    }
}

#[test]
fn what_a_crash_leaves_of_a_preallocated_disk_the_next_verb_takes_away() {
    for fuel in 0.. {
        let rig = furnished();
        rig.sim.borrow_mut().fuel = Some(fuel);
        let done = thick()[0].run(&mut rig.controller());
        let died = rig.sim.borrow().dead;
        rig.sim.borrow_mut().restart(false);
        Op::Create("other".into()).run(&mut rig.controller()).unwrap();
        let state = rig.sim.borrow().check().unwrap_or_else(|e| panic!("dead at {fuel}: {e}"));
        assert!(state.get("disk").is_none_or(|disk| disk.bytes == [0]), "dead at {fuel}");
        if !died {
            done.unwrap();
            break;
        }
    }
}

/// A volume that has the name of a preallocated disk without a record, and was made by somebody else.
#[test]
fn what_only_has_the_name_of_debris_is_not_removed() {
    let rig = furnished();
    let sr = rig.controller().sr_info("sr").unwrap().uuid;
    let name = names::thick_lv(sr, Uuid::new_v4());
    rig.happens(Event::VolumeAppears(name.clone(), "linear"));
    let there = |rig: &Rig| rig.sim.borrow().volume(&name).is_some();
    Op::Create("other".into()).run(&mut rig.controller()).unwrap();
    rig.controller().sr_attach("sr").unwrap();
    assert!(there(&rig), "neither by a verb nor by recovery");
    for op in [Op::Detach("a".into()), Op::Preallocate("disk".into()), Op::Destroy("disk".into())] {
        op.run(&mut rig.controller()).unwrap();
    }
    let error = rig.controller().sr_destroy(&SrDestroy { sr: "sr".into(), force: true }).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    assert!(error.message.contains(&name), "{error}");
    assert!(there(&rig));
    // With the tag that ours are made with, it goes.
    rig.sim.borrow_mut().volume_mut(&name).unwrap().tags.push(names::TAG.into());
    rig.controller().sr_attach("sr").unwrap();
    assert!(!there(&rig));
}

#[test]
fn a_preallocated_disk_has_no_snapshots_and_no_clones() {
    let rig = furnished();
    thick()[0].run(&mut rig.controller()).unwrap();
    for op in [Op::Snapshot("disk".into(), "s".into()), Op::Clone("disk".into(), "c".into())] {
        let error = op.run(&mut rig.controller()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Refused);
        assert!(error.message.contains("preallocated"), "{error}");
    }
}

#[test]
fn an_interrupt_leaves_nothing_of_a_new_disk_and_an_old_one_as_it_was() {
    let rig = furnished();
    let before = rig.sim.borrow().check().unwrap();
    let error = Op::Interrupted("disk".into()).run(&mut rig.controller()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert_eq!(rig.sim.borrow().check().unwrap(), before);

    thick()[0].run(&mut rig.controller()).unwrap();
    Op::Attach("disk".into()).run(&mut rig.controller()).unwrap();
    let before = rig.sim.borrow().check().unwrap();
    let work = &mut Work { progress: &mut |_, _| (), cancelled: &|| true };
    let error = rig.controller().vdi_resize("sr", "disk", 4 * CHUNK, work).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert_eq!(rig.sim.borrow().check().unwrap(), before);
}

#[test]
fn while_a_disk_is_zeroed_others_have_the_sr_but_cannot_take_it_away() {
    let rig = furnished();
    let looked = std::cell::Cell::new(false);
    let request = VdiCreate { name: "disk".into(), size: CHUNK };
    let mut progress = |_, _| {
        if looked.replace(true) {
            return;
        }
        // Another process.
        let mut other = rig.controller();
        assert!(other.vdi_list("sr").unwrap().iter().all(|vdi| vdi.name != "disk"));
        Op::Clone("t".into(), "new".into()).run(&mut other).unwrap();
        Op::Detach("a".into()).run(&mut other).unwrap();
        assert_eq!(other.sr_detach("sr").unwrap_err().kind, ErrorKind::Refused);
        other.sr_recover("sr").unwrap();
    };
    let work = &mut Work { progress: &mut progress, cancelled: &|| false };
    rig.controller().vdi_preallocate("sr", &request, work).unwrap();
    let state = rig.sim.borrow().check().unwrap();
    assert!(looked.get() && state.contains_key("new"));
    assert_eq!(state["disk"].bytes, [0]);
}

#[test]
fn a_preallocated_disk_that_the_group_has_no_room_for_is_refused_with_the_sizes() {
    let rig = furnished();
    let request = VdiCreate { name: "disk".into(), size: 9 << 30 };
    let error = to_the_end(|work| rig.controller().vdi_preallocate("sr", &request, work)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    let sim = rig.sim.borrow();
    let pool = sim.pool_chunks() * CHUNK;
    for words in ["9 GiB (9663676416 bytes)", "vgextend sr", &format!("({pool} bytes)")] {
        assert!(error.message.contains(words), "{words}: {error}");
    }
    drop(sim);
    rig.sim.borrow().check().unwrap();
}

#[test]
fn a_verb_that_finds_the_pool_nearly_full_grows_it() {
    let rig = nearly_full();
    let before = rig.sim.borrow().pool_chunks();
    let report = rig.controller().vdi_create("sr", &VdiCreate { name: "new".into(), size: CHUNK }).unwrap();
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    assert!(report.steps.iter().any(|step| step.step.starts_with("grow the thin pool")));
    let after = rig.sim.borrow().pool_chunks();
    assert!(after > before * 14 / 10, "{before} {after}");
    rig.sim.borrow().check().unwrap();
}

#[test]
fn whoever_only_looks_after_pools_grows_them_from_every_point_of_death() {
    for fuel in 0.. {
        let rig = nearly_full();
        let before = rig.sim.borrow().pool_chunks();
        rig.sim.borrow_mut().fuel = Some(fuel);
        rig.controller().tend(&Default::default()).unwrap();
        let died = rig.sim.borrow().dead;
        rig.sim.borrow_mut().restart(false);
        let tended = rig.controller().tend(&Default::default()).unwrap();
        assert!(tended[0].warnings.is_empty(), "{tended:?}");
        rig.sim.borrow().check().unwrap();
        assert!(rig.sim.borrow().pool_chunks() > before);
        if !died {
            assert!(tended[0].steps.is_empty(), "it had grown: {tended:?}");
            break;
        }
    }
}

#[test]
fn flattening_grows_a_pool_that_grows_by_itself_and_no_other() {
    // No more is free than is left to guests.
    let short = |automatically| {
        let rig = furnished();
        let policy = SrGrow { automatically: Some(automatically), size: None };
        rig.controller().sr_grow("sr", &policy).unwrap();
        let mut sim = rig.sim.borrow_mut();
        sim.ballast = sim.pool_chunks() - sim.pool_chunks() / 20;
        drop(sim);
        rig
    };
    let flatten = Op::Flatten("b".into());
    let rig = short(false);
    let before = rig.sim.borrow().pool_chunks();
    let error = flatten.run(&mut rig.controller()).unwrap_err();
    assert!(error.message.contains("left to guests"), "{error}");
    assert_eq!(rig.sim.borrow().pool_chunks(), before);
    assert!(rig.sim.borrow().check().unwrap()["b"].dependent);
    for fuel in 0.. {
        let rig = short(true);
        rig.sim.borrow_mut().fuel = Some(fuel);
        let done = flatten.run(&mut rig.controller());
        let died = rig.sim.borrow().dead;
        rig.sim.borrow_mut().restart(false);
        if died {
            rig.controller().sr_attach("sr").unwrap();
            rig.sim.borrow().check().unwrap_or_else(|e| panic!("dead at {fuel}: {e}"));
            flatten.run(&mut rig.controller()).unwrap();
        }
        let state = rig.sim.borrow().check().unwrap();
        assert!(!state["b"].dependent && rig.sim.borrow().pool_chunks() > before, "dead at {fuel}");
        if !died {
            done.unwrap();
            break;
        }
    }
}

#[test]
fn a_look_that_is_to_change_nothing_tells_the_steps() {
    let rig = nearly_full();
    let before = rig.world();
    let tended = rig.process(true).tend(&Default::default()).unwrap();
    assert!(tended[0].steps.iter().any(|step| step.starts_with("grow the thin pool")), "{tended:?}");
    assert_eq!(rig.world(), before);
}

#[test]
fn a_pool_does_not_grow_while_a_template_does_not_answer() {
    let rig = nearly_full();
    rig.sim.borrow_mut().hung = true;
    let before = rig.sim.borrow().pool_chunks();
    let report = rig.controller().vdi_create("sr", &VdiCreate { name: "new".into(), size: CHUNK }).unwrap();
    assert!(report.warnings.iter().any(|warning| warning.contains("template 't'")), "{:?}", report.warnings);
    let error = Op::Grow.run(&mut rig.controller()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    assert_eq!(rig.sim.borrow().pool_chunks(), before);
    rig.sim.borrow().check().unwrap();
    // With nobody on the template there is nothing to wait for.
    Op::Detach("a".into()).run(&mut rig.controller()).unwrap();
    assert!(rig.sim.borrow().pool_chunks() > before);

    let rig = nearly_full();
    rig.sim.borrow_mut().hung = true;
    rig.sim.borrow_mut().mutation = Mutation::BlindGrowth;
    Op::Grow.run(&mut rig.controller()).unwrap();
    let violation = rig.sim.borrow().check().unwrap_err();
    assert!(violation.contains("every VDI waits"), "{violation}");
}

#[test]
fn a_pool_that_is_not_to_grow_by_itself_grows_when_it_is_told() {
    let rig = nearly_full();
    let fixed = SrGrow { automatically: Some(false), size: None };
    rig.controller().sr_grow("sr", &fixed).unwrap();
    let before = rig.sim.borrow().pool_chunks();
    let report = rig.controller().vdi_create("sr", &VdiCreate { name: "new".into(), size: CHUNK }).unwrap();
    assert_eq!(rig.sim.borrow().pool_chunks(), before);
    assert!(report.warnings[0].contains("does not grow by itself"), "{:?}", report.warnings);
    assert!(rig.controller().tend(&Default::default()).unwrap()[0].steps.is_empty());
    let larger = SrGrow { size: Some((before + 100) * CHUNK), automatically: None };
    let record = rig.controller().sr_grow("sr", &larger).unwrap().record.unwrap();
    assert_eq!(record.pool_size, Some((before + 100) * CHUNK));
    assert_eq!(record.pool_grows, Some(false));
}
