//! What is told of an SR that is half detached or cannot be read, on the simulated world.

use super::tests::{Op, furnished};
use super::{Event, Rig};
use crate::controller::SrDestroy;
use crate::error::ErrorKind;
use crate::view::SrInfo;

/// A furnished SR whose VDIs are not attached.
fn at_rest() -> Rig {
    let rig = furnished();
    Op::Detach("a".into()).run(&mut rig.controller()).unwrap();
    rig
}

/// What every verb that looks at SRs says of the one there is, which must be the same.
fn told(rig: &Rig) -> SrInfo {
    let mut smctl = rig.controller();
    let listed = smctl.sr_list().unwrap();
    assert_eq!(listed, smctl.sr_probe("sr").unwrap());
    let [info] = listed.as_slice() else { panic!("one SR is there: {listed:?}") };
    assert_eq!(*info, smctl.sr_info("sr").unwrap());
    let tree = smctl.tree(None).unwrap().remove(0);
    assert_eq!((tree.attached, &tree.error), (info.state != "detached", &info.error));
    info.clone()
}

fn is_active(rig: &Rig, volume: &str) -> bool {
    rig.sim.borrow().devices.values().any(|device| device.lv.as_ref().is_some_and(|lv| lv.ends_with(volume)))
}

#[test]
fn an_sr_is_told_as_detached_from_when_its_detaching_began() {
    let mut half = 0;
    for fuel in 0.. {
        let rig = at_rest();
        rig.sim.borrow_mut().fuel = Some(fuel);
        let result = rig.controller().sr_detach("sr");
        let died = rig.sim.borrow().dead;
        rig.sim.borrow_mut().restart(false);
        let whole = is_active(&rig, "-meta") && is_active(&rig, "-pool");
        let info = told(&rig);
        assert_eq!(info.state, if whole { "attached" } else { "detached" }, "dead at {fuel}");
        half += u32::from(!whole && !rig.sim.borrow().remembered.is_empty());
        rig.controller().sr_detach("sr").unwrap();
        assert!(rig.sim.borrow().devices.is_empty() && rig.sim.borrow().remembered.is_empty());
        if !died {
            result.unwrap();
            break;
        }
    }
    assert!(half >= 3, "half detached {half} times only");
}

#[test]
fn an_sr_with_one_volume_active_is_detached_and_says_which_is_not() {
    for volume in ["-meta", "-pool"] {
        let rig = at_rest();
        rig.happens(Event::VolumeStops(volume));
        let info = told(&rig);
        assert_eq!((info.state, info.error), ("detached", None), "{volume}");
        let [warning] = info.warnings.as_slice() else { panic!("{volume}: {:?}", info.warnings) };
        assert!(warning.contains(&format!("{volume} is not active")), "{warning}");
        let error = Op::Create("new".into()).run(&mut rig.controller()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotAttached, "{error}");
        rig.controller().sr_attach("sr").unwrap();
        assert_eq!(told(&rig).state, "attached");
    }
}

#[test]
fn an_sr_that_cannot_be_read_says_why_and_can_be_given_up() {
    for (event, why) in
        [(Event::RecordsAreOfALaterVersion, "format version 9"), (Event::RecordsAreLost, "no records")]
    {
        let rig = at_rest();
        rig.happens(event.clone());
        let info = told(&rig);
        assert_eq!(info.state, "unreadable", "{event:?}");
        assert!(info.error.is_some_and(|error| error.contains(why)), "{event:?}");
        assert_eq!((info.pool_size.is_some(), info.disks), (true, None), "what LVM tells is told");
        let destroy = |force| rig.controller().sr_destroy(&SrDestroy { sr: "sr".into(), force });
        assert_eq!(destroy(false).unwrap_err().kind, ErrorKind::Refused);
        rig.controller().sr_detach("sr").unwrap();
        assert_eq!(told(&rig).state, "detached");
        assert_eq!(destroy(false).unwrap_err().kind, ErrorKind::Refused);
        destroy(true).unwrap();
        assert!(rig.sim.borrow().group.is_none(), "{event:?}");
    }
}
