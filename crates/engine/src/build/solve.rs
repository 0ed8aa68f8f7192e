//! Drives the solver: carries its effects out, in parallel, and brings the answers back.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;
use std::time::Duration;

use kiln_graph::{Graph, InputUse, Op, SourceOp, VertexId};
use kiln_oci::Digest;
use kiln_solver::{
    Effect, Event, Input, InputMode, KeyPart, Node, NodeId, Part, Policy, Scheduler, State, Status, content_key,
};
use kiln_store::{CacheKey, LockGuard};

use super::explain;
use super::job::Job;
use super::plan::Identify;
use crate::error::{Error, Result};
use crate::events::Outcome;
use crate::ops;
use crate::steps::Step;
use crate::value::Value;

/// Threads besides those of running steps.
const MOST_BESIDE: usize = 64;

/// Solves a build's graph; again, if something that an earlier time relied on turned out to be lost.
pub struct Solver<'a> {
    job: &'a Job,
    /// Told of each vertex that was made in this build.
    made: &'a Made<'a>,
    /// Why nodes failed.
    errors: Mutex<HashMap<NodeId, Error>>,
    /// Steps that were begun, until they end.
    started: Mutex<HashMap<NodeId, Step>>,
    /// Steps that were shown to be cached.
    shown: Mutex<HashSet<NodeId>>,
    /// Hits wait here until something runs, to be shown in the order of the graph: they are found from its end.
    held: Mutex<Option<BTreeSet<NodeId>>>,
}

/// Is told a vertex's index and what it became.
pub type Made<'a> = dyn Fn(usize, &Value) + Sync + 'a;

type Answer = Event<Value, Digest>;

fn vertex(node: NodeId, graph: &Graph) -> &kiln_graph::Vertex {
    &graph.vertices()[node.index()]
}

/// Runs `work` in a thread that sends what it returns.
fn spawn<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    sender: &Sender<Answer>,
    work: impl FnOnce() -> Answer + Send + 'scope,
) -> std::io::Result<()> {
    let sender = sender.clone();
    // Nobody listens once the build is given up.
    let run = move || _ = sender.send(work());
    std::thread::Builder::new().name("step".into()).spawn_scoped(scope, run).map(|_| ())
}

fn node_id(id: VertexId) -> NodeId {
    NodeId(id.index() as u32)
}

impl<'a> Solver<'a> {
    /// Of a build.
    pub fn new(job: &'a Job, made: &'a Made<'a>) -> Self {
        let held = Mutex::new(Some(BTreeSet::new()));
        Self { job, made, errors: Mutex::default(), started: Mutex::default(), shown: Mutex::default(), held }
    }

    /// What the targets became, in the order in which they were asked for.
    pub fn solve(&self, targets: &[VertexId]) -> Result<Vec<Value>> {
        let nodes = self.job.graph.vertices().iter().map(|v| self.node(v)).collect();
        let ids: Vec<NodeId> = targets.iter().map(|t| node_id(*t)).collect();
        let mut scheduler = Scheduler::new(nodes, &ids).map_err(|e| Error::request(e.to_string()))?;
        std::thread::scope(|scope| {
            let (sender, answers) = channel::<Answer>();
            let mut queue: VecDeque<Effect> = scheduler.start().into();
            let (mut cancelled, mut running) = (false, 0);
            while matches!(scheduler.status(), Status::Running) {
                while running < self.most_threads()
                    && let Some(effect) = queue.pop_front()
                {
                    match self.begin(scope, &scheduler, effect, &sender) {
                        Ok(Some(answer)) => {
                            queue.extend(scheduler.handle(answer).map_err(|e| Error::request(e.to_string()))?);
                        }
                        Ok(None) => running += 1,
                        // No more threads are to be had: when one ends, it is tried again.
                        Err(_) if running > 0 => {
                            queue.push_front(effect);
                            break;
                        }
                        Err(e) => return Err(Error::io("start a thread for", "a step", e)),
                    }
                }
                if !matches!(scheduler.status(), Status::Running) {
                    break;
                }
                if self.job.cancel.is_cancelled() && !std::mem::replace(&mut cancelled, true) {
                    queue.extend(scheduler.handle(Event::Cancel).map_err(|e| Error::request(e.to_string()))?);
                    continue;
                }
                let Ok(answer) = answers.recv_timeout(Duration::from_millis(200)) else { continue };
                running -= 1;
                if let Event::Failed { node } = answer
                    && !self.lost_a_layer(node)
                {
                    // What runs beside a failed step is of no use any more.
                    self.job.cancel.cancel();
                }
                if let Event::Executed { node, result } = &answer {
                    (self.made)(node.index(), result);
                }
                queue.extend(scheduler.handle(answer).map_err(|e| Error::request(e.to_string()))?);
            }
            self.conclude(&scheduler, &ids)
        })
    }

    /// Steps that sleep do not hold others back, but each has a thread: those that admission may let in, and some that digest.
    fn most_threads(&self) -> usize {
        self.job.admission.most() + MOST_BESIDE
    }

    fn node(&self, vertex: &kiln_graph::Vertex) -> Node {
        let uses = vertex.input_uses();
        let input = |(edge, used): (&kiln_graph::Edge, InputUse)| Input {
            node: node_id(edge.vertex),
            mode: match used {
                InputUse::Key => InputMode::ByKey,
                InputUse::Content(_) => InputMode::ByContent,
            },
        };
        let policy = match &vertex.op {
            Op::Source(SourceOp::Local(_)) => Policy::AlwaysRun,
            // What an image's or commit's digest names does not change.
            Op::Source(_) if !vertex.meta.ignore_cache => Policy::Cached,
            _ if vertex.meta.ignore_cache => Policy::Refresh,
            _ => Policy::Cached,
        };
        Node { inputs: vertex.inputs.iter().zip(uses).map(input).collect(), policy }
    }

    /// Carries an effect out: at once if it is cheap, else in a thread that sends the answer. The error is that there is none.
    fn begin<'scope, 'env: 'scope>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        scheduler: &Scheduler<Value, Digest>,
        effect: Effect,
        sender: &Sender<Answer>,
    ) -> std::io::Result<Option<Answer>> {
        match effect {
            Effect::LookupDefinition(node) => {
                let key = self.job.plan.definition(node.index());
                Ok(Some(self.looked_up(node, key.and_then(|k| self.lookup(&k).transpose()).transpose())))
            }
            Effect::LookupContent(node) => {
                let key = self.content_key(scheduler, node);
                let hit = self.lookup(&key);
                if let (Ok(Some(_)), Some(definition)) = (&hit, self.job.plan.definition(node.index())) {
                    let _ = self.job.engine.store.cache().alias(&CacheKey(key), &CacheKey(definition));
                }
                Ok(Some(self.looked_up(node, hit)))
            }
            Effect::DigestInput { node, input } => {
                let value = self.input_value(scheduler, node, input);
                let work = move || match value.and_then(|v| self.digest_input(node, input, &v)) {
                    Ok(digest) => Event::Digested { node, input, digest },
                    Err(error) => self.failed(node, error),
                };
                spawn(scope, sender, work).map(|()| None)
            }
            Effect::Execute(node) => {
                let inputs: Result<Vec<Value>> = (0..vertex(node, &self.job.graph).inputs.len())
                    .map(|i| self.input_value(scheduler, node, i))
                    .collect();
                let key = match vertex(node, &self.job.graph).inputs.is_empty() {
                    true => self.job.plan.definition(node.index()),
                    false => Some(self.content_key(scheduler, node)),
                };
                let parts = self.key_parts(scheduler, node);
                let work = move || match inputs.and_then(|inputs| self.execute(node, &inputs, key, &parts)) {
                    Ok(result) => Event::Executed { node, result },
                    Err(error) => self.failed(node, error),
                };
                spawn(scope, sender, work).map(|()| None)
            }
        }
    }

    fn looked_up(&self, node: NodeId, hit: Result<Option<Value>>) -> Answer {
        match hit {
            Ok(Some(value)) => {
                self.show_cached(node);
                Event::LookedUp { node, hit: Some(value) }
            }
            Ok(None) => Event::LookedUp { node, hit: None },
            // A cache that can't be read is no cache.
            Err(error) => {
                self.job.steps.warn(format!("cache record: {error}"));
                Event::LookedUp { node, hit: None }
            }
        }
    }

    fn lookup(&self, key: &Digest) -> Result<Option<Value>> {
        let record = self.job.engine.store.cache().lookup(&CacheKey(*key))?;
        match record.and_then(|r| Value::from_record(&r)) {
            Some(value) => Ok(Some(value)),
            None => self.job.imports.find(self.job, key),
        }
    }

    fn show_cached(&self, node: NodeId) {
        if let Some(held) = &mut *self.held.lock().unwrap_or_else(PoisonError::into_inner) {
            held.insert(node);
            return;
        }
        if self.shown.lock().unwrap_or_else(PoisonError::into_inner).insert(node) {
            self.step(node).end(Outcome::Cached);
        }
    }

    /// Shows what waited; from now on hits are shown at once.
    fn show_held(&self) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        held.into_iter().flatten().for_each(|node| self.show_cached(node));
    }

    /// Whether the node failed because of a layer of an imported cache, so that the graph is solved again.
    fn lost_a_layer(&self, node: NodeId) -> bool {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(errors.get(&node), Some(Error::LostLayer { .. }))
    }

    fn remember(&self, keys: &[Digest], value: &Value, description: &str) -> Result<()> {
        let keys: Vec<CacheKey> = keys.iter().copied().map(CacheKey).collect();
        if let Value::Tree { snapshot, identity } = value {
            self.job.engine.store.cache().insert(&keys, &Value::record(snapshot, identity, description))?;
        }
        Ok(())
    }

    fn input_value(&self, scheduler: &Scheduler<Value, Digest>, node: NodeId, input: usize) -> Result<Value> {
        let from = node_id(vertex(node, &self.job.graph).inputs[input].vertex);
        match scheduler.state(from) {
            Some(State::Done { result, .. }) => Ok(result.clone()),
            _ => Err(Error::request(format!("input {input} of step {node} is not there"))),
        }
    }

    fn key_parts(&self, scheduler: &Scheduler<Value, Digest>, node: NodeId) -> Vec<KeyPart> {
        let inputs = &vertex(node, &self.job.graph).inputs;
        let parts = scheduler.parts(node).into_iter().flatten();
        parts
            .zip(inputs)
            .map(|(part, edge)| match part {
                Part::Result(value) => KeyPart::Output { key: value.identity(), output: edge.output },
                Part::Digest(digest) => KeyPart::Tree(*digest),
            })
            .collect()
    }

    fn content_key(&self, scheduler: &Scheduler<Value, Digest>, node: NodeId) -> Digest {
        let op = vertex(node, &self.job.graph).op_digest();
        content_key(&op.0, &self.key_parts(scheduler, node)).0
    }

    fn digest_input(&self, node: NodeId, input: usize, value: &Value) -> Result<Digest> {
        let vertex = vertex(node, &self.job.graph);
        match &vertex.input_uses()[input] {
            InputUse::Content(selectors) => {
                self.job.digest(value, selectors).map_err(|e| self.not_digested(node, self.located(vertex, e)))
            }
            InputUse::Key => Ok(value.identity()),
        }
    }

    /// Makes a node; another process that makes the same one is waited for and its result taken.
    fn execute(&self, node: NodeId, inputs: &[Value], key: Option<Digest>, parts: &[KeyPart]) -> Result<Value> {
        let vertex = vertex(node, &self.job.graph);
        if let Op::Source(SourceOp::Local(local)) = &vertex.op {
            return Ok(Value::Context(local.name.clone()));
        }
        self.job.engine.writes();
        let key = key.unwrap_or_else(|| Digest::of(vertex.op_digest().0.bytes()));
        let guard = self.lock_step(node, &key)?;
        // Between the look-up and the lock somebody else may have made it.
        if !vertex.meta.ignore_cache
            && let Some(value) = self.lookup(&key)?
        {
            self.show_cached(node);
            return Ok(value);
        }
        let mut step = self.take_step(node);
        let ingredients = explain::ingredients(self.job, vertex, parts);
        if self.job.request.explain {
            step.missed(explain::reasons(self.job, vertex, &ingredients));
        }
        let made = ops::execute(self.job, vertex, inputs, &step).map_err(|e| self.located(vertex, e));
        let value = made.map(|snapshot| {
            // What was asked to be made again is another result than the old one, and so is all that is made from it.
            let identity = if vertex.meta.ignore_cache { Value::identity_of(&snapshot) } else { key };
            Value::Tree { snapshot, identity }
        });
        let value = match value {
            Ok(value) => value,
            Err(error) => return Err(self.not_made(node, step, error)),
        };
        let name = self.job.steps.shown(&vertex.meta.name);
        let keys: Vec<Digest> = [Some(key), self.job.plan.definition(node.index())].into_iter().flatten().collect();
        self.remember(&keys, &value, &name)?;
        // Only now: who waits for the lock looks for the record.
        drop(guard);
        explain::remember(self.job, vertex, &ingredients);
        step.end(Outcome::Done);
        if let Value::Tree { snapshot, .. } = &value {
            self.job.early.made(snapshot, &name);
        }
        Ok(value)
    }

    /// The right to make a step, for which other processes that make the same one wait.
    fn lock_step(&self, node: NodeId, key: &Digest) -> Result<LockGuard> {
        let id = self.job.step_id(node.index());
        let mut told = false;
        let mut keep_waiting = || {
            if !std::mem::replace(&mut told, true) {
                self.job.steps.sink().event(crate::events::Event::Progress {
                    id,
                    item: "waiting for another kiln process that runs the same step".into(),
                    current: 0,
                    total: None,
                    done: false,
                });
            }
            !self.job.cancel.is_cancelled()
        };
        let name = format!("step.{}", key.hex());
        self.job.engine.store.lock_while(&name, &mut keep_waiting)?.ok_or(Error::Cancelled)
    }

    /// Ends a step whose inputs have not what it asks for. Each of them may say so.
    fn not_digested(&self, node: NodeId, error: Error) -> Error {
        let is_first = || self.shown.lock().unwrap_or_else(PoisonError::into_inner).insert(node);
        match matches!(error, Error::Step(_)) && is_first() {
            true => self.not_made(node, self.take_step(node), error),
            false => error,
        }
    }

    /// Ends a step that failed.
    fn not_made(&self, node: NodeId, mut step: Step, error: Error) -> Error {
        let error = if self.job.cancel.is_cancelled() { Error::Cancelled } else { error };
        match &error {
            // It goes on when the graph is solved again.
            Error::LostLayer { .. } => {
                self.started.lock().unwrap_or_else(PoisonError::into_inner).insert(node, step);
            }
            Error::Cancelled => step.end(Outcome::Cancelled),
            Error::Step(failed) => step.end(Outcome::Failed(failed.cause.to_string())),
            other => step.end(Outcome::Failed(other.to_string())),
        }
        error
    }

    /// Adds the vertex's place to an error that has none.
    fn located(&self, vertex: &kiln_graph::Vertex, error: Error) -> Error {
        match error {
            Error::Step(_) | Error::Cancelled | Error::LostLayer { .. } => error,
            other => self.job.resolved.located(vertex, other),
        }
    }

    /// The node's step, begun if it was not.
    fn take_step(&self, node: NodeId) -> Step {
        self.show_held();
        let known = self.started.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
        known.unwrap_or_else(|| self.step(node))
    }

    fn step(&self, node: NodeId) -> Step {
        self.job.steps.start(self.job.step_id(node.index()))
    }

    fn failed(&self, node: NodeId, error: Error) -> Answer {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).insert(node, error);
        Event::Failed { node }
    }

    fn conclude(&self, scheduler: &Scheduler<Value, Digest>, targets: &[NodeId]) -> Result<Vec<Value>> {
        if matches!(scheduler.status(), Status::Succeeded) {
            self.show_unvisited(scheduler);
        }
        self.show_held();
        match scheduler.status() {
            Status::Failed { failed, .. } => {
                let mut errors = std::mem::take(&mut *self.errors.lock().unwrap_or_else(PoisonError::into_inner));
                // The first that failed by itself; the others were stopped because of it.
                let by_itself =
                    |e: Option<&Error>| !matches!(e, Some(Error::Cancelled | Error::LostLayer { .. }) | None);
                let first = failed.iter().find(|n| by_itself(errors.get(n)));
                // Nothing but lost layers: they are made again.
                let lost = || failed.iter().find(|n| matches!(errors.get(n), Some(Error::LostLayer { .. })));
                let first = first.or_else(lost);
                let first = first.or(failed.first());
                Err(first.and_then(|n| errors.remove(n)).unwrap_or(Error::Cancelled))
            }
            Status::Cancelled { .. } | Status::Running => Err(Error::Cancelled),
            Status::Succeeded => {
                let value = |t: &NodeId| match scheduler.state(*t) {
                    Some(State::Done { result, .. }) => Ok(result.clone()),
                    _ => Err(Error::Cancelled),
                };
                targets.iter().map(value).collect()
            }
        }
    }

    /// Steps that nobody had to look at, because what is made from them was found, are shown as cached.
    fn show_unvisited(&self, scheduler: &Scheduler<Value, Digest>) {
        for (index, vertex) in self.job.graph.vertices().iter().enumerate() {
            let idle = matches!(scheduler.state(NodeId(index as u32)), Some(State::Idle));
            let local = matches!(vertex.op, Op::Source(SourceOp::Local(_)));
            if idle && !local && self.job.plan.is_needed(index) {
                self.show_cached(NodeId(index as u32));
            }
        }
    }
}
