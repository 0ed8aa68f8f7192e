//! Arithmetic instead of files: the value of a node is computed from its inputs' values, of which a node that only
//! reads an input sees the remainder modulo 3. A naive evaluation is the oracle.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

/// A result: its value, and an identity that no other execution has.
type Result = (u64, u64);

#[derive(Debug, Clone)]
struct Step {
    op: u64,
    inputs: Vec<(usize, InputMode)>,
    policy: Policy,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Definition(u64, Vec<(InputMode, Key)>),
    Content(u64, Vec<(bool, u64)>),
}

/// What survives from build to build.
#[derive(Default)]
struct World {
    cache: HashMap<Key, Result>,
    next_identity: u64,
}

fn seen(value: u64) -> u64 {
    value % 3
}

fn compute(op: u64, inputs: impl Iterator<Item = u64>) -> u64 {
    inputs.fold(op, |sum, v| sum.wrapping_mul(31).wrapping_add(v))
}

fn naive(steps: &[Step]) -> Vec<u64> {
    let mut values: Vec<u64> = Vec::new();
    for step in steps {
        let inputs = step.inputs.iter().map(|&(i, mode)| match mode {
            InputMode::ByKey => values[i],
            InputMode::ByContent => seen(values[i]),
        });
        values.push(compute(step.op, inputs));
    }
    values
}

/// Small graphs only: the keys are trees.
fn definition(steps: &[Step], at: usize) -> Key {
    Key::Definition(steps[at].op, steps[at].inputs.iter().map(|&(i, mode)| (mode, definition(steps, i))).collect())
}

fn nodes(steps: &[Step]) -> Vec<Node> {
    let input = |&(i, mode): &(usize, InputMode)| Input { node: NodeId(i as u32), mode };
    steps.iter().map(|s| Node { inputs: s.inputs.iter().map(input).collect(), policy: s.policy }).collect()
}

struct Build<'a> {
    steps: &'a [Step],
    scheduler: Scheduler<Result, u64>,
    pending: Vec<Effect>,
    executed: Vec<usize>,
    emitted: HashSet<Effect>,
}

impl<'a> Build<'a> {
    fn new(steps: &'a [Step], targets: &[usize]) -> Self {
        let targets: Vec<NodeId> = targets.iter().map(|&t| NodeId(t as u32)).collect();
        let mut scheduler = Scheduler::new(nodes(steps), &targets).unwrap();
        let pending = scheduler.start();
        let emitted = pending.iter().copied().collect();
        Self { steps, scheduler, pending, executed: Vec::new(), emitted }
    }

    fn content(&self, node: NodeId) -> Key {
        let part = |p: &Part<Result, u64>| match p {
            Part::Result((_, identity)) => (false, *identity),
            Part::Digest(d) => (true, **d),
        };
        let parts = self.scheduler.parts(node).unwrap();
        Key::Content(self.steps[node.index()].op, parts.iter().map(part).collect())
    }

    fn answer(&mut self, effect: Effect, world: &mut World) -> Event<Result, u64> {
        match effect {
            Effect::LookupDefinition(node) => {
                let hit = world.cache.get(&definition(self.steps, node.index())).copied();
                Event::LookedUp { node, hit }
            }
            Effect::DigestInput { node, input } => {
                let (of, mode) = self.steps[node.index()].inputs[input];
                assert_eq!(mode, InputMode::ByContent);
                let (value, _) = self.scheduler.result(NodeId(of as u32)).expect("the input is there");
                Event::Digested { node, input, digest: seen(*value) }
            }
            Effect::LookupContent(node) => {
                let hit = world.cache.get(&self.content(node)).copied();
                if let Some(hit) = hit {
                    world.cache.insert(definition(self.steps, node.index()), hit);
                }
                Event::LookedUp { node, hit }
            }
            Effect::Execute(node) => Event::Executed { node, result: self.execute(node, world) },
        }
    }

    fn execute(&mut self, node: NodeId, world: &mut World) -> Result {
        let step = &self.steps[node.index()];
        self.executed.push(node.index());
        let inputs = step.inputs.iter().map(|&(i, mode)| {
            let (value, _) = self.scheduler.result(NodeId(i as u32)).expect("the input is there");
            if mode == InputMode::ByContent { seen(*value) } else { *value }
        });
        world.next_identity += 1;
        let result = (compute(step.op, inputs), world.next_identity);
        if step.policy != Policy::AlwaysRun {
            world.cache.insert(definition(self.steps, node.index()), result);
            world.cache.insert(self.content(node), result);
        }
        result
    }

    fn step(&mut self, pick: usize, world: &mut World) {
        let effect = self.pending.swap_remove(pick % self.pending.len());
        let event = self.answer(effect, world);
        self.give(event);
    }

    fn give(&mut self, event: Event<Result, u64>) {
        for effect in self.scheduler.handle(event).unwrap() {
            assert!(self.emitted.insert(effect), "{effect:?} twice");
            self.pending.push(effect);
        }
    }

    /// Answers in the order that `picks` says, until nothing is left to do.
    fn run(mut self, picks: &[usize], world: &mut World) -> Self {
        for at in 0.. {
            if self.pending.is_empty() {
                break;
            }
            assert_eq!(self.scheduler.status(), Status::Running);
            self.step(picks[at % picks.len()], world);
        }
        self
    }

    fn found(&self, at: usize) -> Option<Found> {
        match self.scheduler.state(NodeId(at as u32))? {
            State::Done { found, .. } => Some(*found),
            _ => None,
        }
    }
}

fn key(i: usize) -> (usize, InputMode) {
    (i, InputMode::ByKey)
}

fn content(i: usize) -> (usize, InputMode) {
    (i, InputMode::ByContent)
}

fn step(op: u64, inputs: &[(usize, InputMode)]) -> Step {
    Step { op, inputs: inputs.to_vec(), policy: Policy::Cached }
}

/// `base <- source step <- build`, and `final` that reads `build` on top of `base`.
fn two_stages(source: u64) -> Vec<Step> {
    vec![step(3, &[]), step(source, &[key(0)]), step(7, &[key(1)]), step(9, &[key(0), content(2)])]
}

#[test]
fn a_hit_by_definition_asks_for_nothing_else() {
    let mut world = World::default();
    let steps = two_stages(1);
    let first = Build::new(&steps, &[3]).run(&[0], &mut world);
    assert_eq!(first.executed.len(), 4);
    assert_eq!(first.scheduler.miss_reason(NodeId(0)), Some(MissReason::NoDefinition));
    assert_eq!(first.scheduler.miss_reason(NodeId(3)), Some(MissReason::NoContent));
    assert_eq!(first.scheduler.lookups(NodeId(3)), Some((Lookup::Miss, Lookup::Miss)));
    let again = Build::new(&steps, &[3]).run(&[0], &mut world);
    assert_eq!(again.emitted, HashSet::from([Effect::LookupDefinition(NodeId(3))]));
    assert_eq!(again.found(3), Some(Found::ByDefinition));
    assert_eq!(again.scheduler.state(NodeId(2)), Some(&State::Idle));
    assert_eq!(again.scheduler.miss_reason(NodeId(3)), None);
}

#[test]
fn what_is_read_and_equal_is_found_by_content() {
    let mut world = World::default();
    let before = two_stages(1);
    Build::new(&before, &[3]).run(&[0], &mut world);
    // Another source, but what the last step sees of the build is the same.
    let same = (2..).map(two_stages).find(|s| seen(naive(s)[2]) == seen(naive(&before)[2])).unwrap();
    let build = Build::new(&same, &[3]).run(&[0], &mut world);
    assert_eq!(build.executed, [1, 2]);
    assert_eq!((build.found(0), build.found(3)), (Some(Found::ByDefinition), Some(Found::ByContent)));
    // The definition leads there too now.
    let again = Build::new(&same, &[3]).run(&[0], &mut world);
    assert_eq!(again.found(3), Some(Found::ByDefinition));
    assert!(again.executed.is_empty());
}

#[test]
fn a_refresh_reaches_what_is_above_it_and_no_further() {
    let mut world = World::default();
    let steps = two_stages(1);
    Build::new(&steps, &[3]).run(&[0], &mut world);
    let mut fresh = steps.clone();
    fresh[1].policy = Policy::Refresh;
    let build = Build::new(&fresh, &[3]).run(&[0], &mut world);
    assert_eq!(build.executed, [1, 2], "the last step reads the same bytes as before");
    assert_eq!(build.scheduler.miss_reason(NodeId(1)), Some(MissReason::Refresh));
    assert_eq!(build.scheduler.miss_reason(NodeId(2)), Some(MissReason::InputRefreshed));
    assert_eq!(build.found(0), Some(Found::ByDefinition));
    assert_eq!(build.scheduler.lookups(NodeId(3)), Some((Lookup::None, Lookup::Hit)));
    let later = Build::new(&steps, &[3]).run(&[0], &mut world);
    assert!(later.executed.is_empty(), "what was refreshed is kept");
}

#[test]
fn what_always_runs_does_so_only_if_something_needs_it() {
    let mut world = World::default();
    let mut steps = two_stages(1);
    steps[0].policy = Policy::AlwaysRun;
    Build::new(&steps, &[3]).run(&[0], &mut world);
    assert!(Build::new(&steps, &[3]).run(&[0], &mut world).executed.is_empty());
    steps[3].op += 1;
    let build = Build::new(&steps, &[3]).run(&[0], &mut world);
    assert_eq!(build.executed, [0, 3]);
    assert_eq!(build.scheduler.miss_reason(NodeId(0)), Some(MissReason::AlwaysRun));
}

#[test]
fn independent_work_is_begun_at_once() {
    let mut steps: Vec<Step> = (0..12).map(|i| step(i, &[])).collect();
    steps.push(step(99, &(0..12).map(content).collect::<Vec<_>>()));
    let mut build = Build::new(&steps, &[12]);
    let mut world = World::default();
    build.step(0, &mut world);
    assert_eq!(build.pending.len(), 12, "all lookups together");
    while let Some(at) = build.pending.iter().position(|e| matches!(e, Effect::LookupDefinition(_))) {
        build.step(at, &mut world);
    }
    assert!(build.pending.iter().all(|e| matches!(e, Effect::Execute(_))));
    assert_eq!(build.pending.len(), 12);
}

#[test]
fn a_failure_stops_what_has_not_begun() {
    let steps = vec![step(1, &[]), step(2, &[]), step(3, &[key(0)]), step(4, &[key(2), key(1)])];
    let mut build = Build::new(&steps, &[3]);
    let mut world = World::default();
    while !build.pending.iter().all(|e| matches!(e, Effect::Execute(_))) {
        let at = build.pending.iter().position(|e| !matches!(e, Effect::Execute(_))).unwrap();
        build.step(at, &mut world);
    }
    assert_eq!(build.pending.len(), 2);
    build.give(Event::Failed { node: NodeId(1) });
    assert_eq!(build.scheduler.status(), Status::Running, "node 0 is still at work");
    build.give(Event::Executed { node: NodeId(0), result: (1, 1) });
    assert_eq!(build.emitted.iter().filter(|e| matches!(e, Effect::Execute(_))).count(), 2, "nothing new");
    let skipped = vec![NodeId(2), NodeId(3)];
    assert_eq!(build.scheduler.status(), Status::Failed { failed: vec![NodeId(1)], skipped });
    assert_eq!(build.scheduler.result(NodeId(0)), Some(&(1, 1)), "what was under way counts");
}

#[test]
fn a_failed_digest_leaves_the_other_digests_to_end() {
    let steps = vec![step(1, &[]), step(2, &[]), step(3, &[content(0), content(1)])];
    let mut build = Build::new(&steps, &[2]);
    let mut world = World::default();
    while !build.pending.iter().all(|e| matches!(e, Effect::DigestInput { .. })) {
        let at = build.pending.iter().position(|e| !matches!(e, Effect::DigestInput { .. })).unwrap();
        build.step(at, &mut world);
    }
    build.give(Event::Failed { node: NodeId(2) });
    assert_eq!(build.scheduler.status(), Status::Running);
    build.give(Event::Digested { node: NodeId(2), input: 1, digest: 0 });
    assert_eq!(build.scheduler.status(), Status::Failed { failed: vec![NodeId(2)], skipped: vec![] });
}

#[test]
fn cancelling_before_the_start_does_nothing_at_all() {
    let mut scheduler = Scheduler::<Result, u64>::new(nodes(&two_stages(1)), &[NodeId(3)]).unwrap();
    assert_eq!(scheduler.handle(Event::Cancel).unwrap(), []);
    assert_eq!(scheduler.start(), []);
    assert_eq!(scheduler.status(), Status::Cancelled { skipped: vec![] });
}

#[test]
fn mistakes_of_the_caller_are_errors() {
    let forward =
        vec![Node { inputs: vec![Input { node: NodeId(0), mode: InputMode::ByKey }], policy: Policy::Cached }];
    assert_eq!(Scheduler::<(), ()>::new(forward, &[]).unwrap_err(), SolverError::Order { node: 0, input: 0 });
    assert!(Scheduler::<(), ()>::new(vec![], &[NodeId(0)]).is_err());
    let mut scheduler = Scheduler::<Result, u64>::new(nodes(&two_stages(1)), &[NodeId(3)]).unwrap();
    scheduler.start();
    let error = scheduler.handle(Event::Executed { node: NodeId(3), result: (0, 0) }).unwrap_err();
    assert_eq!(error.to_string(), "node 3: Executed does not answer an effect; the node is being looked up");
    assert!(scheduler.handle(Event::Failed { node: NodeId(0) }).is_err());
    assert!(scheduler.handle(Event::Failed { node: NodeId(77) }).is_err());
}

#[test]
fn ten_thousand_nodes_take_no_time() {
    let chain = |n: usize| -> Vec<Step> {
        let inputs = |i: usize| if i == 0 { vec![] } else { vec![key(i - 1), content(i / 2)] };
        (0..n).map(|i| step(i as u64, &inputs(i))).collect()
    };
    let time = |n: usize| {
        let steps = chain(n);
        let start = Instant::now();
        let mut scheduler = Scheduler::<Result, u64>::new(nodes(&steps), &[NodeId(n as u32 - 1)]).unwrap();
        let mut pending = scheduler.start();
        while let Some(effect) = pending.pop() {
            let event = match effect {
                Effect::LookupDefinition(node) | Effect::LookupContent(node) => Event::LookedUp { node, hit: None },
                Effect::DigestInput { node, input } => Event::Digested { node, input, digest: 0 },
                Effect::Execute(node) => Event::Executed { node, result: (0, 0) },
            };
            pending.extend(scheduler.handle(event).unwrap());
        }
        assert_eq!(scheduler.status(), Status::Succeeded);
        start.elapsed()
    };
    let (small, large) = (time(10_000), time(100_000));
    assert!(small < Duration::from_secs(1), "{small:?}");
    assert!(large < Duration::from_secs(10), "{large:?}: not linear");
}

fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    let policy = prop_oneof![8 => Just(Policy::Cached), 1 => Just(Policy::Refresh), 1 => Just(Policy::AlwaysRun)];
    let one = (0..4u64, prop::collection::vec((any::<usize>(), any::<bool>()), 0..4), policy);
    prop::collection::vec(one, 1..12).prop_map(|all| {
        let mode = |by_key| if by_key { InputMode::ByKey } else { InputMode::ByContent };
        let inputs = |at: usize, picks: Vec<(usize, bool)>| match at {
            0 => vec![],
            _ => picks.into_iter().map(|(i, by_key)| (i % at, mode(by_key))).collect(),
        };
        let steps = all.into_iter().enumerate();
        steps.map(|(at, (op, picks, policy))| Step { op, inputs: inputs(at, picks), policy }).collect()
    })
}

/// The nodes that a target needs when every node of `hit` ends the search.
fn needed(steps: &[Step], targets: &[usize], build: &Build) -> HashSet<usize> {
    let mut todo = targets.to_vec();
    let mut all = HashSet::new();
    while let Some(at) = todo.pop() {
        if all.insert(at) && build.found(at) != Some(Found::ByDefinition) {
            todo.extend(steps[at].inputs.iter().map(|i| i.0));
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Several builds on one cache, with ops changed in between, answered in any order, give what a naive evaluation
    /// gives; no node runs twice, or without need.
    #[test]
    fn agrees_with_the_oracle(
        mut steps in any_steps(),
        targets in prop::collection::vec(any::<usize>(), 1..3),
        changes in prop::collection::vec((any::<usize>(), 0..4u64), 3),
        picks in prop::collection::vec(any::<usize>(), 1..40),
    ) {
        let targets: Vec<usize> = targets.into_iter().map(|t| t % steps.len()).collect();
        let mut world = World::default();
        for (at, op) in changes {
            let expected = naive(&steps);
            let build = Build::new(&steps, &targets).run(&picks, &mut world);
            prop_assert_eq!(build.scheduler.status(), Status::Succeeded);
            for (i, value) in expected.iter().enumerate() {
                if let Some((got, _)) = build.scheduler.result(NodeId(i as u32)) {
                    prop_assert_eq!(got, value, "node {}", i);
                }
            }
            let once: HashSet<usize> = build.executed.iter().copied().collect();
            prop_assert_eq!(once.len(), build.executed.len(), "executed twice");
            let needed = needed(&steps, &targets, &build);
            prop_assert!(once.is_subset(&needed), "executed without need");
            prop_assert!((0..steps.len()).all(|i| needed.contains(&i) || build.scheduler.state(NodeId(i as u32)) == Some(&State::Idle)));
            prop_assert!(needed.iter().all(|&i| steps[i].policy != Policy::Refresh || once.contains(&i)));
            let i = at % steps.len();
            steps[i].op = op;
        }
    }

    /// Failures and cancellation in any order of events end the build, with nothing new begun.
    #[test]
    fn failures_and_cancellation_end_every_build(
        steps in any_steps(),
        picks in prop::collection::vec((any::<usize>(), 0..10u8), 1..60),
    ) {
        let target = steps.len() - 1;
        let mut world = World::default();
        let mut build = Build::new(&steps, &[target]);
        let (mut ended, mut broken) = (false, Vec::new());
        for at in 0.. {
            if build.pending.is_empty() {
                break;
            }
            prop_assert_eq!(build.scheduler.status(), Status::Running);
            let (pick, action) = picks[at % picks.len()];
            let before = build.emitted.len();
            match action {
                0 => {
                    let effect = build.pending.swap_remove(pick % build.pending.len());
                    let (Effect::LookupDefinition(node) | Effect::LookupContent(node) | Effect::Execute(node)
                        | Effect::DigestInput { node, .. }) = effect;
                    broken.push(node);
                    build.give(Event::Failed { node });
                    prop_assert_eq!(build.emitted.len(), before);
                    ended = true;
                }
                1 => {
                    build.give(Event::Cancel);
                    ended = true;
                    build.step(pick, &mut world);
                }
                _ => build.step(pick, &mut world),
            }
            prop_assert!(!ended || build.emitted.len() == before, "something new after the end");
        }
        match build.scheduler.status() {
            Status::Running => prop_assert!(false, "still running"),
            Status::Succeeded => prop_assert!(build.scheduler.result(NodeId(target as u32)).is_some()),
            Status::Failed { failed, .. } => prop_assert!(failed.iter().all(|f| broken.contains(f))),
            Status::Cancelled { .. } => prop_assert!(ended),
        }
    }
}
