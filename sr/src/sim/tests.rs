//! Every operation from every point of death, and long random lives.

use super::check::{CHUNKS, Face, State};
use super::{Event, Mutation, Rig};
use crate::controller::{
    Controller, SrCreate, SrDestroy, SrGrow, SrIntroduce, VdiClone, VdiCreate, VdiIntroduce, Work,
};
use crate::error::{ErrorKind, Result};

const CHUNK: u64 = super::CHUNK;

pub(super) fn create() -> SrCreate {
    SrCreate { name: "sr".into(), devices: vec!["/dev/sda".into()], ..SrCreate::default() }
}

pub(super) fn named(name: &str) -> VdiClone {
    VdiClone { name: Some(name.into()), size: None }
}

/// An operation of a user, by names.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Introduce(String, u8),
    Create(String),
    Clone(String, String),
    Snapshot(String, String),
    Revert(String, String),
    Resize(String, u64),
    Attach(String),
    Detach(String),
    Destroy(String),
    Flatten(String),
    Localise(String),
    Delocalise(String),
    Preallocate(String),
    /// The making of a preallocated disk that is stopped in the middle.
    Interrupted(String),
    Grow,
}

/// Work that nobody stops.
pub(super) fn to_the_end<T>(run: impl FnOnce(&mut Work<'_>) -> T) -> T {
    run(&mut Work { progress: &mut |_, _| (), cancelled: &|| false })
}

impl Op {
    pub(super) fn run(&self, smctl: &mut Controller) -> Result<()> {
        match self {
            Self::Introduce(name, content) => {
                let request =
                    VdiIntroduce { location: content.to_string(), name: Some(name.clone()), patience: None };
                smctl.vdi_introduce("sr", &request).map(drop)
            }
            Self::Create(name) => {
                smctl.vdi_create("sr", &VdiCreate { name: name.clone(), size: 4 * CHUNK }).map(drop)
            }
            Self::Clone(from, name) => smctl.vdi_clone("sr", from, &named(name)).map(drop),
            Self::Snapshot(from, name) => smctl.vdi_snapshot("sr", from, &named(name)).map(drop),
            Self::Revert(vdi, to) => smctl.vdi_revert("sr", vdi, to).map(drop),
            Self::Resize(vdi, chunks) => {
                to_the_end(|work| smctl.vdi_resize("sr", vdi, chunks * CHUNK, work)).map(drop)
            }
            Self::Attach(vdi) => smctl.vdi_attach("sr", vdi, false).map(drop),
            Self::Detach(vdi) => smctl.vdi_detach("sr", vdi).map(drop),
            Self::Destroy(vdi) => smctl.vdi_destroy("sr", vdi).map(drop),
            Self::Flatten(vdi) => to_the_end(|work| smctl.vdi_flatten("sr", vdi, work)).map(drop),
            Self::Localise(vdi) => to_the_end(|work| smctl.vdi_localise("sr", vdi, work)).map(drop),
            Self::Delocalise(vdi) => smctl.vdi_localise_undo("sr", vdi).map(drop),
            Self::Preallocate(name) => {
                let request = VdiCreate { name: name.clone(), size: CHUNK };
                to_the_end(|work| smctl.vdi_preallocate("sr", &request, work)).map(drop)
            }
            Self::Interrupted(name) => {
                let request = VdiCreate { name: name.clone(), size: 4 * CHUNK };
                let work = &mut Work { progress: &mut |_, _| (), cancelled: &|| true };
                smctl.vdi_preallocate("sr", &request, work).map(drop)
            }
            Self::Grow => smctl.sr_grow("sr", &SrGrow::default()).map(drop),
        }
    }
}

/// An SR with a template, an attached clone that is written to, its snapshot, and a detached clone of that.
pub(super) fn furnished() -> Rig {
    let rig = Rig::new();
    let mut smctl = rig.controller();
    smctl.sr_create(&create()).unwrap();
    for op in [
        Op::Introduce("t".into(), 7),
        Op::Introduce("unused".into(), 8),
        Op::Clone("t".into(), "a".into()),
        Op::Attach("a".into()),
        Op::Snapshot("a".into(), "a1".into()),
        Op::Clone("a1".into(), "b".into()),
    ] {
        op.run(&mut smctl).unwrap();
    }
    rig.sim.borrow_mut().write("a", 0, 99);
    rig
}

fn ops() -> Vec<Op> {
    vec![
        Op::Introduce("new".into(), 9),
        Op::Create("new".into()),
        Op::Clone("t".into(), "new".into()),
        Op::Clone("a".into(), "new".into()),
        Op::Clone("b".into(), "new".into()),
        Op::Snapshot("a".into(), "new".into()),
        Op::Resize("a".into(), 4),
        Op::Resize("b".into(), 4),
        Op::Attach("b".into()),
        Op::Attach("t".into()),
        Op::Attach("unused".into()),
        Op::Detach("a".into()),
        Op::Destroy("b".into()),
        Op::Destroy("a1".into()),
        Op::Destroy("unused".into()),
        Op::Flatten("a".into()),
        Op::Flatten("a1".into()),
        Op::Flatten("b".into()),
        Op::Localise("t".into()),
        Op::Localise("unused".into()),
    ]
}

pub(super) fn detached(mut state: State) -> State {
    state.values_mut().for_each(|face| face.attached = false);
    state
}

/// Before a localised template is forgotten, its copy goes.
fn without_copy(mut state: State, op: &Op) -> State {
    if let Op::Destroy(name) = op
        && let Some(face) = state.get_mut(name)
    {
        face.local = false;
    }
    state
}

/// Runs `op` from a furnished SR, dying at every point in turn; says how many points there were.
pub(super) fn die_everywhere(
    op: &Op,
    prepare: &[Op],
    mutation: Mutation,
) -> std::result::Result<u32, String> {
    for reboot in [false, true] {
        for fuel in 0.. {
            let rig = furnished();
            for op in prepare {
                op.run(&mut rig.controller()).unwrap();
            }
            let before = rig.sim.borrow().check().unwrap();
            rig.sim.borrow_mut().mutation = mutation;
            rig.sim.borrow_mut().fuel = Some(fuel);
            let result = op.run(&mut rig.controller());
            let died = rig.sim.borrow().dead;
            if !died {
                result.map_err(|e| e.to_string())?;
                rig.sim.borrow().check()?;
                if reboot {
                    return Ok(fuel);
                }
                break;
            }
            rig.sim.borrow_mut().restart(reboot);
            let at = format!("{op:?} dead at {fuel}, reboot {reboot}");
            rig.controller().sr_attach("sr").map_err(|e| format!("{at}: {e}"))?;
            let now = rig.sim.borrow().check().map_err(|e| format!("{at}: {e}"))?;
            // What the operation does when nothing stops it.
            let whole = furnished();
            for op in prepare {
                op.run(&mut whole.controller()).unwrap();
            }
            op.run(&mut whole.controller()).unwrap();
            let after = whole.sim.borrow().check().unwrap();
            let (before, after) = if reboot { (detached(before), detached(after)) } else { (before, after) };
            let between = without_copy(before.clone(), op);
            if now != before && now != after && now != between {
                return Err(format!("{at}: neither before nor after: {now:?}"));
            }
        }
    }
    unreachable!("an operation ends at last")
}

#[test]
fn every_operation_converges_from_every_point_of_death() {
    for op in ops() {
        let points = die_everywhere(&op, &[], Mutation::None).unwrap();
        assert!(points >= 2, "{op:?} has effects");
    }
    let prepare = [Op::Detach("a".into())];
    let points = die_everywhere(&Op::Revert("a".into(), "a1".into()), &prepare, Mutation::None).unwrap();
    assert!(points >= 10, "a revert makes a device and drops one");
    let localised = [Op::Localise("t".into()), Op::Localise("unused".into())];
    for op in [
        Op::Delocalise("t".into()),
        Op::Delocalise("unused".into()),
        Op::Destroy("unused".into()),
        Op::Flatten("a".into()),
        Op::Attach("b".into()),
        Op::Detach("a".into()),
    ] {
        die_everywhere(&op, &localised, Mutation::None).unwrap();
    }
    let flattened = [Op::Flatten("a".into()), Op::Detach("a".into())];
    for op in [Op::Revert("a".into(), "a1".into()), Op::Attach("a".into()), Op::Resize("a".into(), 4)] {
        die_everywhere(&op, &flattened, Mutation::None).unwrap();
    }
}

/// The tests of the test: each wrong order is noticed.
#[test]
fn wrong_orders_are_noticed() {
    let clone = Op::Clone("t".into(), "new".into());
    let late = die_everywhere(&clone, &[], Mutation::LateIntent).unwrap_err();
    assert!(late.contains("device ids"), "{late}");
    let early = die_everywhere(&clone, &[], Mutation::EarlyTransactionId).unwrap_err();
    assert!(early.contains("device ids"), "{early}");
    assert!(die_everywhere(&Op::Attach("b".into()), &[], Mutation::LostOrigin).is_err());
    assert!(die_everywhere(&Op::Flatten("b".into()), &[], Mutation::LostSync).is_err());
    let unheld = die_everywhere(&Op::Flatten("a".into()), &[], Mutation::Unheld).unwrap_err();
    assert!(unheld.contains("while a guest writes"), "{unheld}");
}

#[test]
fn an_sr_is_made_and_destroyed_from_every_point_of_death() {
    for fuel in 0.. {
        let rig = Rig::new();
        rig.sim.borrow_mut().fuel = Some(fuel);
        let result = rig.controller().sr_create(&create());
        if !rig.sim.borrow().dead {
            result.unwrap();
            assert!(fuel > 10);
            break;
        }
        rig.sim.borrow_mut().restart(false);
        match rig.controller().sr_create(&create()) {
            Ok(_) => {}
            // It died after the records were made: then it is whole, and attaching is all that it may need.
            Err(e) => {
                assert_eq!(e.kind, ErrorKind::Refused, "dead at {fuel}: {e}");
                rig.controller().sr_attach("sr").unwrap();
            }
        }
        rig.sim.borrow().check().unwrap();
        assert_eq!(rig.controller().sr_list().unwrap().len(), 1, "dead at {fuel}");
        rig.controller().vdi_create("sr", &VdiCreate { name: "x".into(), size: CHUNK }).unwrap();
    }
    for fuel in 0.. {
        let rig = furnished();
        Op::Detach("a".into()).run(&mut rig.controller()).unwrap();
        rig.sim.borrow_mut().fuel = Some(fuel);
        let destroy = SrDestroy { sr: "sr".into(), force: true };
        let result = rig.controller().sr_destroy(&destroy);
        let died = rig.sim.borrow().dead;
        rig.sim.borrow_mut().restart(false);
        // What there is can be told, whatever is half gone.
        rig.controller().sr_list().unwrap();
        if died && rig.sim.borrow().group.is_some() {
            rig.controller().sr_destroy(&destroy).unwrap();
        }
        let sim = rig.sim.borrow();
        assert!(sim.group.is_none() && sim.devices.is_empty() && sim.links.is_empty(), "dead at {fuel}");
        assert!(sim.origins.is_empty());
        if !died {
            result.unwrap();
            break;
        }
    }
}

#[test]
fn a_lent_pool_is_given_back_empty_from_every_point_of_death() {
    for fuel in 0.. {
        let rig = Rig::new();
        rig.happens(Event::GroupAppears("vg"));
        rig.happens(Event::VolumeAppears("theirs".into(), "thin-pool"));
        let (vg, pool) = ("vg".to_owned(), Some("theirs".to_owned()));
        let lent = SrIntroduce { name: "sr".into(), vg, adopt_pool: pool, ..SrIntroduce::default() };
        rig.controller().sr_introduce(&lent).unwrap();
        for name in ["a", "b"] {
            rig.controller().vdi_create("sr", &VdiCreate { name: name.into(), size: CHUNK }).unwrap();
        }
        assert_eq!(rig.sim.borrow().thins.len(), 2);
        rig.sim.borrow_mut().fuel = Some(fuel);
        let destroy = SrDestroy { sr: "sr".into(), force: true };
        let result = rig.controller().sr_destroy(&destroy);
        let died = rig.sim.borrow().dead;
        rig.sim.borrow_mut().restart(false);
        if !rig.controller().sr_list().unwrap().is_empty() {
            assert!(died);
            rig.controller().sr_destroy(&destroy).unwrap_or_else(|e| panic!("dead at {fuel}: {e}"));
        }
        let sim = rig.sim.borrow();
        assert!(sim.thins.is_empty(), "dead at {fuel}: {:?}", sim.thins);
        let (_, _, volumes) = sim.group.as_ref().expect("the group is not ours");
        assert!(volumes.iter().map(|lv| lv.name.as_str()).eq(["theirs"]), "dead at {fuel}: {volumes:?}");
        if !died {
            result.unwrap();
            break;
        }
    }
}

/// A generator of random numbers with a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// What an operation does to what users can tell; `None` where it must be refused.
fn model(state: &State, op: &Op, snapshots: &[(String, String)]) -> Option<State> {
    let mut next = state.clone();
    let face = |template, size: u64, bytes| Face {
        template,
        size,
        attached: false,
        bytes,
        dependent: false,
        local: false,
        thick: false,
    };
    let child = |from: &Face| Face {
        dependent: from.template || from.dependent,
        ..face(false, from.size, from.bytes.clone())
    };
    match op {
        Op::Introduce(name, content) => {
            drop(next.insert(name.clone(), face(true, 2 * CHUNK, vec![*content; 2])));
        }
        Op::Create(name) => drop(next.insert(name.clone(), face(false, 4 * CHUNK, vec![0; 4]))),
        Op::Preallocate(name) => {
            let disk = Face { thick: true, ..face(false, CHUNK, vec![0]) };
            next.insert(name.clone(), disk);
        }
        Op::Interrupted(_) => return None,
        Op::Grow => {}
        Op::Clone(from, name) => {
            let from = state.get(from).filter(|face| !face.thick)?;
            next.insert(name.clone(), child(from));
        }
        Op::Snapshot(from, name) => {
            let from = state.get(from).filter(|face| !face.template && !face.thick)?;
            next.insert(name.clone(), child(from));
        }
        Op::Revert(vdi, to) => {
            if !snapshots.contains(&(vdi.clone(), to.clone())) || state.get(vdi)?.attached {
                return None;
            }
            let to = state.get(to)?.clone();
            let face = next.get_mut(vdi)?;
            (face.size, face.bytes, face.dependent) = (to.size, to.bytes, to.dependent);
        }
        Op::Resize(vdi, chunks) => {
            let snapshot = snapshots.iter().any(|(_, name)| name == vdi);
            let face = next.get_mut(vdi).filter(|face| !face.template && !snapshot)?;
            if chunks * CHUNK < face.size {
                return None;
            }
            face.size = chunks * CHUNK;
            face.bytes.resize((*chunks).min(CHUNKS) as usize, 0);
        }
        Op::Attach(vdi) => next.get_mut(vdi)?.attached = true,
        Op::Detach(vdi) => next.get_mut(vdi)?.attached = false,
        Op::Flatten(vdi) => next.get_mut(vdi).filter(|face| !face.template)?.dependent = false,
        Op::Localise(vdi) => next.get_mut(vdi).filter(|face| face.template)?.local = true,
        Op::Delocalise(vdi) => next.get_mut(vdi).filter(|face| face.template)?.local = false,
        Op::Destroy(vdi) => {
            if state.get(vdi)?.attached {
                return None;
            }
            next.remove(vdi);
        }
    }
    Some(next)
}

/// Random operations, some cut short by death or a reboot, against the model.
fn live(seed: u64, steps: u32) {
    let rig = Rig::new();
    rig.controller().sr_create(&create()).unwrap();
    let mut random = Random(seed);
    let mut state = State::new();
    let mut snapshots: Vec<(String, String)> = Vec::new();
    let mut deaths = 0;
    for step in 0..steps {
        let pick = |random: &mut Random| match state.len() {
            0 => "none".to_owned(),
            n => state.keys().nth(random.below(n)).cloned().unwrap_or_default(),
        };
        let name = format!("v{step}");
        let room = state.len() < 12;
        let op = match random.below(20) {
            0 if room => Op::Introduce(name.clone(), random.below(200) as u8 + 1),
            1 if room => Op::Create(name.clone()),
            2 | 3 if room => Op::Clone(pick(&mut random), name.clone()),
            4 if room => Op::Snapshot(pick(&mut random), name.clone()),
            5 => match snapshots.len() {
                0 => Op::Revert(pick(&mut random), pick(&mut random)),
                n => {
                    let (vdi, to) = snapshots[random.below(n)].clone();
                    Op::Revert(vdi, to)
                }
            },
            6 => Op::Resize(pick(&mut random), random.below(6) as u64 + 1),
            7 | 8 => Op::Attach(pick(&mut random)),
            9 => Op::Detach(pick(&mut random)),
            10 => Op::Destroy(pick(&mut random)),
            11 => Op::Flatten(pick(&mut random)),
            12 => Op::Localise(pick(&mut random)),
            13 => Op::Delocalise(pick(&mut random)),
            14 if room => Op::Preallocate(name.clone()),
            15 if room => Op::Interrupted(name.clone()),
            16 => {
                // Guests write much, or discard it.
                let mut sim = rig.sim.borrow_mut();
                sim.ballast = sim.pool_chunks() * random.below(100) as u64 / 100;
                sim.metadata.1 = sim.metadata.0 * random.below(80) as u64 / 100;
                continue;
            }
            17 => {
                let hung = random.below(2) == 0;
                rig.sim.borrow_mut().hung = hung;
                continue;
            }
            18 => Op::Grow,
            _ => {
                let vdi = pick(&mut random);
                let writable = state.get(&vdi).is_some_and(|face| face.attached && !face.template)
                    && !snapshots.iter().any(|(_, name)| *name == vdi);
                if writable {
                    let (chunk, byte) = (random.below(state[&vdi].bytes.len()), random.below(250) as u8 + 1);
                    rig.sim.borrow_mut().write(&vdi, chunk as u64, byte);
                    state.get_mut(&vdi).unwrap().bytes[chunk] = byte;
                }
                continue;
            }
        };
        let expected = model(&state, &op, &snapshots);
        if random.below(2) == 0 {
            rig.sim.borrow_mut().fuel = Some(random.below(16) as u32);
        }
        let result = op.run(&mut rig.controller());
        let died = rig.sim.borrow().dead;
        let reboot = died && random.below(3) == 0;
        rig.sim.borrow_mut().restart(reboot);
        if died {
            deaths += 1;
            rig.controller()
                .sr_attach("sr")
                .unwrap_or_else(|e| panic!("seed {seed}, step {step}: {op:?}: {e}"));
        }
        let now =
            rig.sim.borrow().check().unwrap_or_else(|e| panic!("seed {seed}, step {step}: {op:?}: {e}"));
        let fits = |mut state: State| {
            if reboot {
                state = detached(state);
            }
            now == state
        };
        let unchanged = fits(state.clone());
        let changed = expected.clone().is_some_and(fits);
        let right = match (&result, &expected) {
            // A template that VDIs show is refused too, which the model does not know.
            (Err(_), _) if !died => unchanged,
            (Err(_), _) => unchanged || changed || fits(without_copy(state.clone(), &op)),
            (Ok(()), Some(_)) => changed,
            (Ok(()), None) => false,
        };
        assert!(right, "seed {seed}, step {step}: {op:?} gave {result:?}:\n{state:?}\n{now:?}");
        if let Op::Snapshot(from, name) = &op
            && now.contains_key(name)
        {
            snapshots.push((from.clone(), name.clone()));
        }
        snapshots
            .retain(|(vdi, name)| now.contains_key(vdi) && now.contains_key(name) || now.contains_key(name));
        state = now;
    }
    assert!(deaths > steps / 25, "only {deaths} deaths in {steps} steps");
}

#[test]
fn random_lives_match_the_model() {
    for seed in 1..=10 {
        live(seed, 10_000);
    }
}

#[test]
fn what_is_not_all_in_the_cache_is_not_localised() {
    let rig = furnished();
    rig.sim.borrow_mut().cached.insert(7, CHUNK);
    let refused = Op::Localise("t".into()).run(&mut rig.controller()).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused);
    assert!(refused.message.starts_with("50 % of template 't'"), "{refused}");
    assert!(!rig.sim.borrow().check().unwrap()["t"].local);
}

#[test]
fn a_localised_template_needs_no_server_and_an_independent_disk_no_template() {
    let rig = furnished();
    let mut smctl = rig.controller();
    let before = rig.sim.borrow().check().unwrap();
    Op::Localise("t".into()).run(&mut smctl).unwrap();
    rig.sim.borrow_mut().server = false;
    for op in [Op::Detach("a".into()), Op::Attach("a".into()), Op::Attach("b".into()), Op::Attach("t".into())]
    {
        op.run(&mut smctl).unwrap();
    }
    let now = rig.sim.borrow().check().unwrap();
    assert!(rig.sim.borrow().origins.is_empty());
    for name in ["a", "b", "t"] {
        assert_eq!(now[name].bytes, before[name].bytes, "{name}");
    }
    // Nothing changes where the way back is closed.
    assert!(Op::Delocalise("t".into()).run(&mut smctl).is_err());
    assert_eq!(rig.sim.borrow().check().unwrap(), now);
    for name in ["a", "b", "a1"] {
        Op::Flatten(name.into()).run(&mut smctl).unwrap();
    }
    Op::Detach("t".into()).run(&mut smctl).unwrap();
    Op::Destroy("t".into()).run(&mut smctl).unwrap();
    let now = rig.sim.borrow().check().unwrap();
    for name in ["a", "b", "a1"] {
        assert_eq!(now[name].bytes, before[name].bytes, "{name}");
    }
}

#[test]
fn a_flattening_that_is_stopped_goes_on_later() {
    let rig = furnished();
    let stop = |smctl: &mut Controller| {
        smctl.vdi_flatten("sr", "b", &mut Work { progress: &mut |_, _| (), cancelled: &|| true })
    };
    let before = rig.sim.borrow().check().unwrap();
    // It is asked whether to stop after what is written at once, which here is all there is.
    let mut smctl = rig.controller();
    match stop(&mut smctl) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind, ErrorKind::Cancelled),
    }
    Op::Flatten("b".into()).run(&mut smctl).unwrap();
    let now = rig.sim.borrow().check().unwrap();
    assert_eq!(now["b"].bytes, before["b"].bytes);
    assert!(!now["b"].dependent);
}
