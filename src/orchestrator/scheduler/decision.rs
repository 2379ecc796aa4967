//! Whose job gets which slot, pure.
//!
//! Slot after slot goes to the user of whom the fewest jobs run, of equal ones to whom the last turn
//! was the longest ago, and at the beginning to whom waits longest. Of that user's jobs it is the first,
//! by priority and then by age, that fits a node with a free slot; of those nodes the least loaded, and
//! of equal ones one that was given this image before, since it need not fetch it.
//!
//! So a user of whom no job runs has the next turn but for one of each other user, however much those
//! queue, and a job that fits no node holds up nobody, not even its own user.

use super::{Sought, places::Places, servable::Servable};
use crate::{
    api::{JobId, NodeId, UserId, time::Time},
    store::{Line, LineMark, Queue, QueuedJob, StoreError},
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
};

/// Images of which it is remembered who was given them. All are forgotten when there are more.
const IMAGES: usize = 256;

/// What earlier decisions leave for later ones: preferences, and what is read again where it is lost, as by a
/// restart.
#[derive(Debug, Default)]
pub struct Memory {
    /// How far the lines of the queue are known, and which of them a node could serve.
    pub(super) mark: LineMark,
    pub(super) servable: Servable,
    turns: u64,
    /// When each user had their last turn.
    last_turn: HashMap<UserId, u64>,
    /// The nodes that were given jobs in an image.
    images: HashMap<String, HashSet<NodeId>>,
}

impl Memory {
    /// The user has a turn; its number.
    fn turn(&mut self, user: UserId) -> u64 {
        self.turns += 1;
        self.last_turn.insert(user, self.turns);
        self.turns
    }

    fn given(&mut self, image: String, node: NodeId) {
        if self.images.len() >= IMAGES && !self.images.contains_key(&image) {
            self.images.clear();
        }
        self.images.entry(image).or_default().insert(node);
    }
}

/// The first jobs of a user's lines, the least first, and the line of each.
type Heads<'a> = BinaryHeap<Reverse<(QueuedJob, &'a Line)>>;

/// What decides whose turn it is, the least first: jobs that run, the last turn, since when they wait.
type Turn = (u32, u64, Time, UserId);

/// Gives jobs whose node is silent another one, the oldest first; one that was asked in vain only where
/// there is no other. They had their turn, so no user's counts.
pub(super) fn place(
    sought: &[Sought],
    places: &mut Places,
) -> Result<Vec<(JobId, NodeId)>, StoreError> {
    let mut placed = Vec::new();
    for sought in sought {
        if !places.has_room(&sought.placement)? {
            continue;
        }
        let holder = [sought.except];
        let asked = [&holder[..], &sought.tried].concat();
        let mut take = |except: &[NodeId]| places.take(&sought.placement, None, except);
        if let Some(node) = take(&asked).or_else(|| take(&holder)) {
            placed.push((sought.job, node));
        }
    }
    Ok(placed)
}

/// Gives each free slot a job of these lines, as long as there is one that fits.
pub(super) fn assign(
    queue: &dyn Queue,
    lines: &[Line],
    mut places: Places,
    memory: &mut Memory,
) -> Result<Vec<(JobId, NodeId)>, StoreError> {
    let mut users = heads(queue, lines, &mut places)?;
    let running = queue.running()?;
    let mut turns: BinaryHeap<Reverse<Turn>> = users
        .iter()
        .filter_map(|(user, heads)| {
            let running = running.get(user).copied().unwrap_or(0);
            let last = memory.last_turn.get(user).copied().unwrap_or(0);
            heads
                .peek()
                .map(|Reverse((first, _))| Reverse((running, last, first.since, *user)))
        })
        .collect();
    let mut assigned = Vec::new();
    while let Some(Reverse((running, _, _, user))) = turns.pop() {
        let Some(heads) = users.get_mut(&user) else {
            continue;
        };
        let Some(given) = serve(queue, heads, &mut places, memory)? else {
            continue;
        };
        assigned.push(given);
        let turn = memory.turn(user);
        if let Some(Reverse((first, _))) = heads.peek() {
            turns.push(Reverse((running + 1, turn, first.since, user)));
        }
    }
    Ok(assigned)
}

/// The first of each line in which somebody could have a slot, by user.
fn heads<'a>(
    queue: &dyn Queue,
    lines: &'a [Line],
    places: &mut Places,
) -> Result<HashMap<UserId, Heads<'a>>, StoreError> {
    let mut users: HashMap<UserId, Heads<'a>> = HashMap::new();
    for line in lines {
        if places.has_room(&line.placement)?
            && let Some(first) = queue.next(line, None)?
        {
            let heads = users.entry(line.user).or_default();
            heads.push(Reverse((first, line)));
        }
    }
    Ok(users)
}

/// Gives a slot to the first of these jobs that fits one. What fits none now fits none later, since
/// slots only get fewer: its line is dropped.
fn serve(
    queue: &dyn Queue,
    heads: &mut Heads<'_>,
    places: &mut Places,
    memory: &mut Memory,
) -> Result<Option<(JobId, NodeId)>, StoreError> {
    while let Some(Reverse((job, line))) = heads.pop() {
        if !places.has_room(&line.placement)? {
            continue;
        }
        let image = queue.image(job.id)?;
        if let Some(node) = places.take(&line.placement, memory.images.get(&image), &[]) {
            memory.given(image, node);
            if let Some(next) = queue.next(line, Some(&job))? {
                heads.push(Reverse((next, line)));
            }
            return Ok(Some((job.id, node)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
