//! The words of the solver: nodes, effects, events and states.

use std::fmt;

/// Names a node: its position in the list given to [`Scheduler::new`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The position in the list of nodes.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Something to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is made from; only nodes that come earlier in the list.
    pub inputs: Vec<Input>,
    /// Whether earlier results count.
    pub policy: Policy,
}

/// What a node is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input {
    /// The node that makes it.
    pub node: NodeId,
    /// How it counts.
    pub mode: InputMode,
}

/// How an input counts for the content key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InputMode {
    /// By the identity of its result.
    ByKey,
    /// By a digest of what the node reads of it.
    ByContent,
}

/// Whether earlier results count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// They do.
    #[default]
    Cached,
    /// They do not (`--no-cache`); the new one does, for later builds. So inputs are digested, for the key to keep it under,
    /// but nothing is looked up.
    Refresh,
    /// Making it costs nothing (a context that is read in place): it is neither looked up nor kept. What is made from it
    /// is looked up all the same.
    AlwaysRun,
}

/// Work for the caller. Each effect is answered by exactly one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Is there a result for the node's definition key? Answer: [`Event::LookedUp`].
    LookupDefinition(NodeId),
    /// Digest what the node reads of an input, whose result is there. Answer: [`Event::Digested`].
    DigestInput {
        /// The node that reads.
        node: NodeId,
        /// Index of the input.
        input: usize,
    },
    /// Is there a result for the node's content key (see [`Scheduler::parts`])? Answer: [`Event::LookedUp`]. After a hit
    /// the definition key should lead to it too.
    LookupContent(NodeId),
    /// Make it; all inputs are there. Answer: [`Event::Executed`].
    Execute(NodeId),
}

/// An answer to an effect. `H` is a handle of a result, `K` a digest of what is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<H, K> {
    /// A lookup ended.
    LookedUp {
        /// For this node.
        node: NodeId,
        /// What was found.
        hit: Option<H>,
    },
    /// What the node reads of an input was digested.
    Digested {
        /// The node that reads.
        node: NodeId,
        /// Index of the input.
        input: usize,
        /// The digest.
        digest: K,
    },
    /// The node was made.
    Executed {
        /// This one.
        node: NodeId,
        /// The result.
        result: H,
    },
    /// An effect of this node failed: a lookup, a digest or the execution.
    Failed {
        /// This one.
        node: NodeId,
    },
    /// The build is to end. It answers no effect.
    Cancel,
}

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State<H> {
    /// Nobody needs it so far.
    Idle,
    /// Being looked up by definition.
    LookingUp,
    /// Some inputs are not made yet.
    WaitingForInputs {
        /// So many.
        missing: usize,
    },
    /// Some inputs are not digested yet.
    Digesting {
        /// So many.
        missing: usize,
    },
    /// Being looked up by content.
    LookingUpContent,
    /// Being made.
    Executing,
    /// There is a result.
    Done {
        /// This one.
        result: H,
        /// Where it came from.
        found: Found,
    },
    /// An effect of it failed.
    Failed,
    /// It was needed, but the build ended before it was made.
    Skipped,
}

/// Where a result came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Found {
    /// The definition key led to it.
    ByDefinition,
    /// The content key led to it.
    ByContent,
    /// It was made now.
    Executed,
}

/// What came of a lookup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Lookup {
    /// It did not take place.
    #[default]
    None,
    /// There was a result.
    Hit,
    /// There was none.
    Miss,
}

/// Why a node was executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MissReason {
    /// It was asked for.
    Refresh,
    /// It is never kept.
    AlwaysRun,
    /// Something below it was to be made again, and its new result is not the old one.
    InputRefreshed,
    /// It has no inputs, and no result for its definition.
    NoDefinition,
    /// There is neither a result for its definition nor one for the content of its inputs.
    NoContent,
}

/// What an input contributes to the content key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a, H, K> {
    /// The identity of this result. Results that may differ must have different ones: in particular, what a node with
    /// [`Policy::Refresh`] makes may never have the identity of what it made before, or else everything above it is found
    /// by content, made from the old result. Ids of the layers that it made are a good identity.
    Result(&'a H),
    /// This digest of what is read of it.
    Digest(&'a K),
}

/// How the build is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// There are effects without an answer.
    Running,
    /// All targets are done.
    Succeeded,
    /// Nodes failed; nothing runs any more.
    Failed {
        /// In the order in which they did.
        failed: Vec<NodeId>,
        /// Needed, but not made.
        skipped: Vec<NodeId>,
    },
    /// It was cancelled; nothing runs any more.
    Cancelled {
        /// Needed, but not made.
        skipped: Vec<NodeId>,
    },
}

/// A mistake of the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SolverError {
    /// A node or target names a node that does not come before it.
    #[error("node {node} names node {input}, which does not come before it")]
    Order {
        /// The node.
        node: usize,
        /// What it names.
        input: usize,
    },
    /// An event does not answer an effect.
    #[error("node {node}: {event} does not answer an effect; the node is {state}")]
    Unexpected {
        /// The node.
        node: u32,
        /// The event.
        event: &'static str,
        /// Where the node is.
        state: &'static str,
    },
}

impl<H> State<H> {
    /// The state in words.
    pub fn name(&self) -> &'static str {
        match self {
            State::Idle => "not asked for",
            State::LookingUp => "being looked up",
            State::WaitingForInputs { .. } => "waiting for inputs",
            State::Digesting { .. } => "digesting inputs",
            State::LookingUpContent => "being looked up by content",
            State::Executing => "being executed",
            State::Done { .. } => "done",
            State::Failed => "failed",
            State::Skipped => "skipped",
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
