//! Topics of pools: nodes that share requests.
//!
//! ```text
//! $share/hall2/orinoco/v1/pool/hall2/req/#        what each member subscribes to: the broker gives each
//!                                                 message to one of them (MQTT 5, 4.8.2)
//! orinoco/v1/pool/hall2/req/plc4/chat/01J9Z3      a request to the pool
//! orinoco/v1/pool/hall2/req/+/cancel/+            what each member subscribes to by itself: all hear it
//! orinoco/v1/pool/hall2/req/plc4/cancel/01J9Z3    ... called off, wherever it is
//! ```
//!
//! Answers go where all answers go. What concerns the node that took a request, a repeat or a cancel,
//! goes to that node's own topics.

use super::{Name, NameError, Names, Op, RequestId};

/// Pools that one node may be in. Bounds its subscriptions.
pub const POOLS_MAX: usize = 16;

impl Names {
    /// The same topics, and those of these pools.
    ///
    /// # Errors
    /// A pool with a reserved name.
    pub fn with_pools(self, pools: Vec<Name>) -> Result<Self, NameError> {
        match pools.iter().find(|pool| pool.is_reserved()) {
            Some(pool) => Err(NameError::Reserved {
                found: pool.to_string(),
            }),
            None => Ok(Self { pools, ..self }),
        }
    }

    /// The topics of another node under the same root.
    ///
    /// # Errors
    /// A reserved name.
    pub fn of(&self, node: Name) -> Result<Self, NameError> {
        Self::new(&self.root, node)
    }

    /// The pools of this node.
    pub fn pools(&self) -> &[Name] {
        &self.pools
    }

    /// `$share/{p}/{r}/v1/pool/{p}/req/#` for each pool: requests, each for one member.
    pub fn pool_shares(&self) -> Vec<String> {
        let share = |pool| format!("$share/{pool}/{}", self.of_pool(pool, "#"));
        self.pools.iter().map(share).collect()
    }

    /// `{r}/v1/pool/{p}/req/+/cancel/+` for each pool: heard by all members.
    pub fn pool_cancels(&self) -> Vec<String> {
        let cancel = |pool| self.of_pool(pool, "+/cancel/+");
        self.pools.iter().map(cancel).collect()
    }

    /// `{r}/v1/pool/{p}/req/{u}/{op}/{id}`: where a client asks a pool.
    pub fn pool_req(&self, pool: &Name, user: &Name, op: Op, id: &RequestId) -> String {
        self.of_pool(pool, &format!("{user}/{op}/{id}"))
    }

    /// `{r}/v1/pool/{p}/req/{u}/cancel/{id}`: where a client calls off what nobody accepted yet.
    pub fn pool_cancel(&self, pool: &Name, user: &Name, id: &RequestId) -> String {
        self.of_pool(pool, &format!("{user}/cancel/{id}"))
    }

    /// `{r}/v1/+/status`: whether nodes are there, for the clients of a pool.
    pub fn statuses(&self) -> String {
        format!("{}/v1/+/status", self.root)
    }

    /// The node of a status topic.
    pub fn node_of_status(&self, topic: &str) -> Option<Name> {
        let node = topic
            .strip_prefix(self.root.as_str())?
            .strip_prefix("/v1/")?
            .strip_suffix("/status")?;
        Name::new(node).ok().filter(|node| !node.is_reserved())
    }

    /// What follows `{r}/v1/pool/{p}/req/` of one of our pools.
    pub(super) fn below_pool<'a>(&self, topic: &'a str) -> Option<&'a str> {
        let rest = topic
            .strip_prefix(self.root.as_str())?
            .strip_prefix("/v1/pool/")?;
        let (pool, rest) = rest.split_once('/')?;
        self.pools.iter().find(|own| own.as_str() == pool)?;
        rest.strip_prefix("req/")
    }

    fn of_pool(&self, pool: &Name, rest: &str) -> String {
        format!("{}/v1/pool/{pool}/req/{rest}", self.root)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Incoming, Name, Names, Op, RESERVED, RequestId};

    fn names(pools: &[&str]) -> Names {
        let name = |text: &&str| Name::new(text).unwrap();
        Names::new("orinoco", Name::new("press-7").unwrap())
            .unwrap()
            .with_pools(pools.iter().map(name).collect())
            .unwrap()
    }

    #[test]
    fn the_topics_of_a_pool_are_these() {
        let names = names(&["hall2", "all"]);
        let (pool, user) = (Name::new("hall2").unwrap(), Name::new("plc4").unwrap());
        let id = RequestId::new("01J9Z3").unwrap();
        assert_eq!(
            names.pool_shares(),
            [
                "$share/hall2/orinoco/v1/pool/hall2/req/#",
                "$share/all/orinoco/v1/pool/all/req/#"
            ]
        );
        assert_eq!(
            names.pool_cancels(),
            [
                "orinoco/v1/pool/hall2/req/+/cancel/+",
                "orinoco/v1/pool/all/req/+/cancel/+"
            ]
        );
        assert_eq!(
            names.pool_req(&pool, &user, Op::Chat, &id),
            "orinoco/v1/pool/hall2/req/plc4/chat/01J9Z3"
        );
        assert_eq!(
            names.pool_cancel(&pool, &user, &id),
            "orinoco/v1/pool/hall2/req/plc4/cancel/01J9Z3"
        );
        assert_eq!(names.statuses(), "orinoco/v1/+/status");
        let node = names.node_of_status("orinoco/v1/press-8/status").unwrap();
        assert_eq!(
            names.of(node).unwrap().cancel(&user, &id),
            "orinoco/v1/press-8/req/plc4/cancel/01J9Z3"
        );
    }

    #[test]
    fn only_the_pools_of_this_node_are_heard() {
        let heard = |names: &Names, topic: &str| names.parse(topic).is_ok();
        let topic = "orinoco/v1/pool/hall2/req/plc4/chat/1";
        assert!(heard(&names(&["hall2"]), topic));
        for pools in [&[][..], &["hall"], &["hall22"], &["HALL2"]] {
            assert!(!heard(&names(pools), topic), "{pools:?}");
        }
        for topic in [
            "orinoco/v1/pool/hall2",
            "orinoco/v1/pool/hall2/req/plc4/chat",
            "orinoco/v1/pool/hall2/req/plc4/chat/1/2",
            "orinoco/v1/pool/hall2/req//chat/1",
            "orinoco/v1/pool/hall2/req/plc4//1",
            "orinoco/v1/pool/hall2/req/daemon/chat/1",
            "orinoco/v1/pool//req/plc4/chat/1",
            "orinoco/v1/pool/req/plc4/chat/1",
            "$share/hall2/orinoco/v1/pool/hall2/req/plc4/chat/1",
        ] {
            assert!(!heard(&names(&["hall2"]), topic), "{topic}");
        }
    }

    #[test]
    fn a_reserved_word_is_no_pool() {
        for word in RESERVED {
            let node = Names::new("orinoco", Name::new("n1").unwrap()).unwrap();
            assert!(node.with_pools(vec![Name::new(word).unwrap()]).is_err());
        }
    }

    #[test]
    fn a_status_topic_names_a_node_and_nothing_else() {
        for topic in [
            "orinoco/v1/status",
            "orinoco/v1/pool/status",
            "orinoco/v1/a/b/status",
            "other/v1/n1/status",
            "orinoco/v1/n1/state",
        ] {
            assert_eq!(names(&[]).node_of_status(topic), None, "{topic}");
        }
    }

    proptest! {
        #[test]
        fn what_a_client_asks_of_a_pool_is_what_a_member_hears(
            pool in "[A-Za-z0-9_.-]{1,64}", user in "[A-Za-z0-9_.-]{1,64}", id in "[A-Za-z0-9_-]{1,64}", at in 0..Op::ALL.len()
        ) {
            prop_assume!(!RESERVED.contains(&pool.as_str()) && !RESERVED.contains(&user.as_str()));
            let names = names(&[&pool]);
            let (pool, user, id) = (Name::new(&pool).unwrap(), Name::new(&user).unwrap(), RequestId::new(&id).unwrap());
            let asked = names.parse(&names.pool_req(&pool, &user, Op::ALL[at], &id));
            prop_assert_eq!(asked, Ok(Incoming::Request { user: user.clone(), op: Ok(Op::ALL[at]), id: id.clone() }));
            let called_off = names.parse(&names.pool_cancel(&pool, &user, &id));
            prop_assert_eq!(called_off, Ok(Incoming::Cancel { user, id }));
        }
    }
}
