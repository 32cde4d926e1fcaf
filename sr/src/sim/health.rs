//! What `sr info` says of the templates under VDIs, on the simulated world.

use super::tests::{Op, furnished};
use super::{Event, Rig};
use crate::OriginInfo;

/// What is said of template `t`, which VDI `a` stands on, and the warnings.
fn said(rig: &Rig) -> (OriginInfo, Vec<String>) {
    let info = rig.controller().sr_info("sr").unwrap();
    let [origin] = info.origins.as_slice() else { panic!("one template is in use: {:?}", info.origins) };
    assert_eq!((origin.name.as_str(), origin.location.as_str(), origin.users), ("t", "7", 1));
    (origin.clone(), info.warnings)
}

#[test]
fn a_template_that_answers_is_told_with_how_much_of_it_is_local() {
    let rig = furnished();
    let (origin, warnings) = said(&rig);
    assert_eq!((origin.answers, origin.silent_since, origin.local_percent), (Some(true), None, Some(100)));
    assert!(origin.device.unwrap().starts_with("/dev"));
    assert_eq!(warnings, [""; 0]);
    rig.happens(Event::CacheIsHalved);
    assert_eq!(said(&rig).0.local_percent, Some(50));
}

#[test]
fn a_silent_template_is_told_with_its_time_and_a_warning() {
    let rig = furnished();
    rig.happens(Event::TemplatesHang);
    let (origin, warnings) = said(&rig);
    let since = "2001-09-09T01:46:40Z";
    assert_eq!((origin.answers, origin.silent_since.as_deref()), (Some(false), Some(since)));
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    assert!(warning.contains("'t'") && warning.contains(since), "{warning}");
}

#[test]
fn a_template_that_nobody_serves_is_told_unless_it_has_a_copy() {
    let rig = furnished();
    rig.sim.borrow_mut().origins.clear();
    let (origin, warnings) = said(&rig);
    assert_eq!((origin.device, origin.answers, origin.local_percent), (None, None, None));
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    assert!(warning.contains("nobody serves template 't'"), "{warning}");

    let rig = furnished();
    Op::Localise("t".into()).run(&mut rig.controller()).unwrap();
    let (origin, warnings) = said(&rig);
    assert!(origin.device.unwrap().to_str().unwrap().contains("-local-"));
    assert_eq!((origin.answers, origin.local_percent), (None, Some(100)));
    assert_eq!(warnings, [""; 0]);
}
