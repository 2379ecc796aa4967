//! Waiting calls in turns by user: each user has a line, and the users take turns. Pure.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// Waiting items of users `U`.
pub(super) struct Turns<U, T> {
    /// Users with waiting items, the next one first.
    order: VecDeque<U>,
    /// Items of each user, oldest first, with their numbers.
    lines: HashMap<U, VecDeque<(u64, T)>>,
    next_number: u64,
    count: usize,
}

impl<U, T> Default for Turns<U, T> {
    fn default() -> Self {
        Self {
            order: VecDeque::new(),
            lines: HashMap::new(),
            next_number: 0,
            count: 0,
        }
    }
}

impl<U: Copy + Eq + Hash, T> Turns<U, T> {
    /// Number of waiting items.
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    /// Adds an item of a user. Returns its number.
    pub(super) fn push(&mut self, user: U, item: T) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.count += 1;
        let line = self.lines.entry(user).or_default();
        if line.is_empty() {
            self.order.push_back(user);
        }
        line.push_back((number, item));
        number
    }

    /// Removes an item, if it still waits.
    pub(super) fn remove(&mut self, user: U, number: u64) -> Option<T> {
        let line = self.lines.get_mut(&user)?;
        let place = line.iter().position(|(other, _)| *other == number)?;
        let (_, item) = line.remove(place)?;
        self.count -= 1;
        self.drop_empty(user);
        Some(item)
    }

    /// Takes the first item that `accept` has a place for: of the user whose turn it is, else of the next ones. That
    /// user goes to the end.
    pub(super) fn take<P>(&mut self, mut accept: impl FnMut(&T) -> Option<P>) -> Option<(T, P)> {
        for turn in 0..self.order.len() {
            let user = *self.order.get(turn)?;
            let line = self.lines.get_mut(&user)?;
            let mut items = line.iter().enumerate();
            let found = items.find_map(|(place, (_, item))| Some((place, accept(item)?)));
            if let Some((place, accepted)) = found {
                let (_, item) = line.remove(place)?;
                self.count -= 1;
                self.order.remove(turn);
                self.order.push_back(user);
                self.drop_empty(user);
                return Some((item, accepted));
            }
        }
        None
    }

    /// Takes the newest item of the user with the most, where that is more than `user` has: so one user can't fill the
    /// queue for others.
    pub(super) fn make_room(&mut self, user: U) -> Option<T> {
        let own = self.lines.get(&user).map_or(0, VecDeque::len);
        let longest = self.lines.iter().max_by_key(|(_, line)| line.len());
        let (longest, length) = longest.map(|(user, line)| (*user, line.len()))?;
        if length <= own {
            return None;
        }
        let (_, item) = self.lines.get_mut(&longest)?.pop_back()?;
        self.count -= 1;
        self.drop_empty(longest);
        Some(item)
    }

    fn drop_empty(&mut self, user: U) {
        if self.lines.get(&user).is_some_and(VecDeque::is_empty) {
            self.lines.remove(&user);
            self.order.retain(|other| *other != user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take_all(turns: &mut Turns<u8, u32>) -> Vec<u32> {
        std::iter::from_fn(|| Some(turns.take(|_| Some(()))?.0)).collect()
    }

    #[test]
    fn users_take_turns() {
        let mut turns = Turns::default();
        for item in 10..15 {
            turns.push(1, item);
        }
        turns.push(2, 20);
        turns.push(2, 21);
        turns.push(3, 30);
        assert_eq!(take_all(&mut turns), [10, 20, 30, 11, 21, 12, 13, 14]);
        assert_eq!(turns.len(), 0);
    }

    #[test]
    fn item_without_place_blocks_no_other() {
        let mut turns = Turns::default();
        for (user, item) in [(1, 10), (1, 11), (2, 20)] {
            turns.push(user, item);
        }
        let mut only = |wanted| turns.take(|item| (*item == wanted).then_some(()));
        assert_eq!(only(11), Some((11, ())));
        assert_eq!(only(99), None);
        assert_eq!(only(20), Some((20, ())));
        assert_eq!(take_all(&mut turns), [10]);
    }

    #[test]
    fn full_queue_takes_from_longest_line() {
        let mut turns = Turns::default();
        for item in 10..13 {
            turns.push(1, item);
        }
        assert_eq!(turns.make_room(1), None);
        turns.push(2, 20);
        assert_eq!(turns.make_room(2), Some(12));
        turns.push(2, 21);
        assert_eq!(turns.make_room(2), None);
        assert_eq!(take_all(&mut turns), [10, 20, 11, 21]);
    }

    proptest! {
        #[test]
        fn each_waiting_user_has_one_turn(
            steps in prop::collection::vec((0..4u8, any::<bool>()), 0..40),
        ) {
            let mut turns = Turns::default();
            for (user, is_push) in steps {
                if is_push {
                    turns.push(user, 0);
                } else {
                    turns.make_room(user);
                }
                let mut order: Vec<_> = turns.order.iter().copied().collect();
                order.sort_unstable();
                let mut waiting: Vec<_> = turns.lines.keys().copied().collect();
                waiting.sort_unstable();
                prop_assert_eq!(order, waiting);
                prop_assert!(turns.lines.values().all(|line| !line.is_empty()));
            }
        }

        #[test]
        fn nothing_is_lost_or_doubled(
            pushed in prop::collection::vec((0..4u8, any::<bool>()), 0..40),
        ) {
            let (mut turns, mut expected) = (Turns::default(), Vec::new());
            for (n, (user, is_removed)) in pushed.iter().enumerate() {
                let number = turns.push(*user, n as u32);
                if *is_removed {
                    prop_assert_eq!(turns.remove(*user, number), Some(n as u32));
                    prop_assert_eq!(turns.remove(*user, number), None);
                } else {
                    expected.push(n as u32);
                }
                prop_assert_eq!(turns.len(), expected.len());
            }
            let mut taken = take_all(&mut turns);
            taken.sort_unstable();
            prop_assert_eq!(taken, expected);
        }

        #[test]
        fn no_user_waits_for_two_of_another(
            pushed in prop::collection::vec(0..4u8, 0..40),
        ) {
            let mut turns = Turns::default();
            for user in &pushed {
                turns.push(*user, u32::from(*user));
            }
            let mut left = [0; 4];
            pushed.iter().for_each(|user| left[usize::from(*user)] += 1);
            let mut since = [[0; 4]; 4];
            for user in take_all(&mut turns) {
                let user = user as usize;
                left[user] -= 1;
                since[user] = [0; 4];
                for (other, left) in left.iter().enumerate() {
                    if other != user && *left > 0 {
                        since[other][user] += 1;
                        prop_assert!(since[other][user] <= 1);
                    }
                }
            }
        }
    }
}
