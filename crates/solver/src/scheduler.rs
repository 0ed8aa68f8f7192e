//! The state machine.

use crate::model::{
    Effect, Event, Found, Input, InputMode, Lookup, MissReason, Node, NodeId, Part, Policy, SolverError, State, Status,
};

/// A node at work.
#[derive(Debug)]
struct Slot<H, K> {
    node: Node,
    state: State<H>,
    /// Nodes that wait for this one; once for each input.
    waiting: Vec<NodeId>,
    /// For each input, what was read of it.
    digests: Vec<Option<K>>,
    /// Effects without an answer.
    in_flight: u32,
    /// Whether something below it is to be made again.
    refreshed: bool,
    definition: Lookup,
    content: Lookup,
}

/// Why no new work is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Failure,
    Cancel,
}

/// The solver; see the crate's description.
#[derive(Debug)]
pub struct Scheduler<H, K> {
    slots: Vec<Slot<H, K>>,
    targets: Vec<NodeId>,
    in_flight: usize,
    failed: Vec<NodeId>,
    ending: Option<Ending>,
}

impl<H, K> Scheduler<H, K> {
    /// A solver for `nodes`, inputs before what uses them. Nothing happens until [`start`](Self::start).
    pub fn new(nodes: Vec<Node>, targets: &[NodeId]) -> Result<Self, SolverError> {
        let mut slots: Vec<Slot<H, K>> = Vec::with_capacity(nodes.len());
        for (at, node) in nodes.into_iter().enumerate() {
            if let Some(input) = node.inputs.iter().find(|i| i.node.index() >= at) {
                return Err(SolverError::Order { node: at, input: input.node.index() });
            }
            let below = |i: &Input| {
                let slot = &slots[i.node.index()];
                slot.refreshed || slot.node.policy == Policy::Refresh
            };
            let refreshed = node.inputs.iter().any(below);
            slots.push(Slot {
                digests: node.inputs.iter().map(|_| None).collect(),
                node,
                state: State::Idle,
                waiting: Vec::new(),
                in_flight: 0,
                refreshed,
                definition: Lookup::None,
                content: Lookup::None,
            });
        }
        if let Some(target) = targets.iter().find(|t| t.index() >= slots.len()) {
            return Err(SolverError::Order { node: slots.len(), input: target.index() });
        }
        Ok(Self { slots, targets: targets.to_vec(), in_flight: 0, failed: Vec::new(), ending: None })
    }

    /// Asks for the targets.
    pub fn start(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.ending.is_none() {
            self.request(self.targets.clone(), &mut effects);
        }
        effects
    }

    /// Takes an answer, and says what to do now.
    pub fn handle(&mut self, event: Event<H, K>) -> Result<Vec<Effect>, SolverError> {
        let mut effects = Vec::new();
        match event {
            Event::LookedUp { node, hit } => self.looked_up(node, hit, &mut effects)?,
            Event::Digested { node, input, digest } => self.digested(node, input, digest, &mut effects)?,
            Event::Executed { node, result } => self.executed(node, result, &mut effects)?,
            Event::Failed { node } => self.failed(node)?,
            Event::Cancel => self.end(Ending::Cancel),
        }
        Ok(effects)
    }

    /// How the build is doing.
    pub fn status(&self) -> Status {
        if self.in_flight > 0 {
            return Status::Running;
        }
        let done = |t: &NodeId| matches!(self.slots[t.index()].state, State::Done { .. });
        if self.failed.is_empty() && self.targets.iter().all(done) {
            return Status::Succeeded;
        }
        let skipped = self.slots.iter().enumerate().filter(|(_, s)| matches!(s.state, State::Skipped));
        let skipped = skipped.map(|(i, _)| NodeId(i as u32)).collect();
        match self.ending {
            None => Status::Running,
            Some(Ending::Cancel) => Status::Cancelled { skipped },
            Some(Ending::Failure) => Status::Failed { failed: self.failed.clone(), skipped },
        }
    }

    /// Where a node is.
    pub fn state(&self, node: NodeId) -> Option<&State<H>> {
        self.slots.get(node.index()).map(|s| &s.state)
    }

    /// The result of a node, once it is done.
    pub fn result(&self, node: NodeId) -> Option<&H> {
        match self.state(node)? {
            State::Done { result, .. } => Some(result),
            _ => None,
        }
    }

    /// What the inputs of a node contribute to its content key, once it is looked up by content or executed. Absent before
    /// that, and for a node with [`Policy::AlwaysRun`] that reads an input: such a node has no key.
    pub fn parts(&self, node: NodeId) -> Option<Vec<Part<'_, H, K>>> {
        let slot = self.slots.get(node.index())?;
        let part = |(input, digest)| match (input, digest) {
            (&Input { mode: InputMode::ByContent, .. }, Some(digest)) => Some(Part::Digest(digest)),
            (&Input { mode: InputMode::ByContent, .. }, None) => None,
            (&Input { node, mode: InputMode::ByKey }, _) => self.result(node).map(Part::Result),
        };
        slot.node.inputs.iter().zip(slot.digests.iter().map(Option::as_ref)).map(part).collect()
    }

    /// What came of the lookups of a node: by definition, by content.
    pub fn lookups(&self, node: NodeId) -> Option<(Lookup, Lookup)> {
        self.slots.get(node.index()).map(|s| (s.definition, s.content))
    }

    /// Why a node was (or is being) executed; absent if it was not.
    pub fn miss_reason(&self, node: NodeId) -> Option<MissReason> {
        let slot = self.slots.get(node.index())?;
        if !matches!(slot.state, State::Executing | State::Done { found: Found::Executed, .. }) {
            return None;
        }
        Some(match slot.node.policy {
            Policy::Refresh => MissReason::Refresh,
            Policy::AlwaysRun => MissReason::AlwaysRun,
            Policy::Cached if slot.refreshed => MissReason::InputRefreshed,
            Policy::Cached if slot.node.inputs.is_empty() => MissReason::NoDefinition,
            Policy::Cached => MissReason::NoContent,
        })
    }

    /// Asks for nodes, and for what they need if they are not looked up first.
    fn request(&mut self, mut wanted: Vec<NodeId>, effects: &mut Vec<Effect>) {
        while let Some(id) = wanted.pop() {
            let slot = &mut self.slots[id.index()];
            if !matches!(slot.state, State::Idle) {
                continue;
            }
            if slot.node.policy == Policy::Cached && !slot.refreshed {
                slot.state = State::LookingUp;
                self.emit(Effect::LookupDefinition(id), id, effects);
            } else {
                self.want_inputs(id, &mut wanted, effects);
            }
        }
    }

    fn emit(&mut self, effect: Effect, id: NodeId, effects: &mut Vec<Effect>) {
        self.slots[id.index()].in_flight += 1;
        self.in_flight += 1;
        effects.push(effect);
    }

    /// Makes `id` wait for its inputs; those that nobody has asked for yet are added to `wanted`.
    fn want_inputs(&mut self, id: NodeId, wanted: &mut Vec<NodeId>, effects: &mut Vec<Effect>) {
        let mut missing = 0;
        for i in 0..self.slots[id.index()].node.inputs.len() {
            let input = self.slots[id.index()].node.inputs[i].node;
            let slot = &mut self.slots[input.index()];
            if matches!(slot.state, State::Done { .. }) {
                continue;
            }
            if matches!(slot.state, State::Idle) {
                wanted.push(input);
            }
            slot.waiting.push(id);
            missing += 1;
        }
        self.slots[id.index()].state = State::WaitingForInputs { missing };
        if missing == 0 {
            self.inputs_ready(id, effects);
        }
    }

    fn inputs_ready(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        let slot = &self.slots[id.index()];
        if slot.node.policy == Policy::AlwaysRun {
            return self.execute(id, effects);
        }
        let reads = |i: &usize| slot.node.inputs[*i].mode == InputMode::ByContent;
        let read: Vec<usize> = (0..slot.node.inputs.len()).filter(reads).collect();
        self.slots[id.index()].state = State::Digesting { missing: read.len() };
        if read.is_empty() {
            return self.digests_ready(id, effects);
        }
        for input in read {
            self.emit(Effect::DigestInput { node: id, input }, id, effects);
        }
    }

    fn digests_ready(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        let node = &self.slots[id.index()].node;
        if node.inputs.is_empty() || node.policy == Policy::Refresh {
            return self.execute(id, effects);
        }
        self.slots[id.index()].state = State::LookingUpContent;
        self.emit(Effect::LookupContent(id), id, effects);
    }

    fn execute(&mut self, id: NodeId, effects: &mut Vec<Effect>) {
        self.slots[id.index()].state = State::Executing;
        self.emit(Effect::Execute(id), id, effects);
    }

    fn looked_up(&mut self, id: NodeId, hit: Option<H>, effects: &mut Vec<Effect>) -> Result<(), SolverError> {
        let slot = self.answered(id, "LookedUp", |s| matches!(s, State::LookingUp | State::LookingUpContent))?;
        let by_definition = matches!(slot.state, State::LookingUp);
        let lookup = if hit.is_some() { Lookup::Hit } else { Lookup::Miss };
        let found = if by_definition {
            slot.definition = lookup;
            Found::ByDefinition
        } else {
            slot.content = lookup;
            Found::ByContent
        };
        match hit {
            Some(result) => self.done(id, result, found, effects),
            None if self.ending.is_some() => self.slots[id.index()].state = State::Skipped,
            None if by_definition => {
                let mut wanted = Vec::new();
                self.want_inputs(id, &mut wanted, effects);
                self.request(wanted, effects);
            }
            None => self.execute(id, effects),
        }
        Ok(())
    }

    fn digested(&mut self, id: NodeId, input: usize, digest: K, effects: &mut Vec<Effect>) -> Result<(), SolverError> {
        let ending = self.ending.is_some();
        let expected = |s: &State<H>| matches!(s, State::Digesting { .. }) || (ending && matches!(s, State::Skipped));
        let slot = self.answered(id, "Digested", expected)?;
        if let Some(at) = slot.digests.get_mut(input) {
            *at = Some(digest);
        }
        let State::Digesting { missing } = &mut slot.state else { return Ok(()) };
        *missing = missing.saturating_sub(1);
        if *missing == 0 && !ending {
            self.digests_ready(id, effects);
        }
        Ok(())
    }

    fn executed(&mut self, id: NodeId, result: H, effects: &mut Vec<Effect>) -> Result<(), SolverError> {
        self.answered(id, "Executed", |s| matches!(s, State::Executing))?;
        self.done(id, result, Found::Executed, effects);
        Ok(())
    }

    fn failed(&mut self, id: NodeId) -> Result<(), SolverError> {
        let slot = self.answered(id, "Failed", |_| true)?;
        if !matches!(slot.state, State::Failed) {
            slot.state = State::Failed;
            self.failed.push(id);
        }
        self.end(Ending::Failure);
        Ok(())
    }

    /// Books the answer to an effect of `id`.
    fn answered(
        &mut self,
        id: NodeId,
        event: &'static str,
        expected: impl Fn(&State<H>) -> bool,
    ) -> Result<&mut Slot<H, K>, SolverError> {
        let unknown = SolverError::Unexpected { node: id.0, event, state: "unknown" };
        let slot = self.slots.get_mut(id.index()).ok_or(unknown)?;
        // A node can fail by one of its digests while others are still on their way.
        let late = matches!(slot.state, State::Failed) && event == "Digested";
        if slot.in_flight == 0 || !(late || expected(&slot.state)) {
            return Err(SolverError::Unexpected { node: id.0, event, state: slot.state.name() });
        }
        slot.in_flight -= 1;
        self.in_flight -= 1;
        Ok(slot)
    }

    fn done(&mut self, id: NodeId, result: H, found: Found, effects: &mut Vec<Effect>) {
        let slot = &mut self.slots[id.index()];
        slot.state = State::Done { result, found };
        for waiting in std::mem::take(&mut slot.waiting) {
            let State::WaitingForInputs { missing } = &mut self.slots[waiting.index()].state else { continue };
            *missing -= 1;
            if *missing == 0 {
                self.inputs_ready(waiting, effects);
            }
        }
    }

    /// No new work: whatever has no effect under way is skipped, if it was asked for.
    fn end(&mut self, why: Ending) {
        // A cancelled build may well see its steps fail; that does not make it a failure.
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(why);
        for slot in &mut self.slots {
            if matches!(slot.state, State::WaitingForInputs { .. } | State::Digesting { .. }) {
                slot.state = State::Skipped;
            }
        }
    }
}

#[cfg(test)]
mod tests;
