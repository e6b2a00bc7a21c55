//! Two replicas on one PostgreSQL behind a load balancer, two clusters with an agent each, and what is done to them.

use std::{thread, time::Duration};

use tests::{Agent, Cluster, Gateway, Program, Replicas, Stopwatch, place, world::run_server};

use crate::{
    clients::{COUNTER, Site},
    faults::{Kind, Planned},
    rules::Fault,
};

/// How many replicas, and clusters.
const BOTH: usize = 2;

/// How long after its streams what drains may be there.
const DRAINED: Duration = Duration::from_secs(90);

/// Each agent has a session with either replica.
const SETTLED: Duration = Duration::from_secs(150);

/// Everything that may die, with what replaced it meanwhile.
#[derive(Debug)]
pub(crate) struct Scene {
    pub replicas: Replicas,
    agents: Vec<Agent>,
    clusters: Vec<Cluster>,
    leaving: Vec<Leaving>,
    /// Faults that were none.
    wrong: Vec<String>,
}

/// What was told to end, and the place of its fault among all.
#[derive(Debug)]
struct Leaving {
    fault: usize,
    gateway: Option<Gateway>,
    agent: Option<Program>,
}

/// What a process holds.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    /// Whose.
    pub name: String,
    /// Open files.
    pub files: usize,
    /// Tasks, by its own count.
    pub tasks: f64,
    /// Resident memory, in KiB.
    pub memory: usize,
}

impl Scene {
    /// Sets it all up; with where each cluster's clients go.
    pub(crate) fn new() -> (Self, Vec<Site>) {
        let clusters = vec![Cluster::with_node(), Cluster::second()];
        let settings = "drain_delay = \"2s\"";
        let replicas = Replicas::start_with("soak", &clusters[0], BOTH, settings);
        let mut agents = Vec::new();
        let mut sites = Vec::new();
        for (number, cluster) in clusters.iter().enumerate() {
            let name = format!("soak-{number}");
            let kubeconfig = place::directory(&name).join("kubeconfig");
            let world = &replicas.world;
            let user = world.admin.with_kubeconfig(&kubeconfig);
            agents.push(world.join(cluster, &name));
            user.get_credentials(&name);
            let namespace = if number == 0 {
                let namespace = world.namespace(cluster);
                run_server(cluster, &namespace);
                namespace
            } else {
                tests::world::new_namespace(cluster)
            };
            let words = format!("-n {namespace} create configmap {COUNTER} --from-literal n=0");
            cluster.kubectl(&words).ok();
            sites.push(Site {
                number,
                cluster: cluster.clone(),
                user,
                namespace,
                changed: 0.into(),
            });
        }
        let scene = Self {
            replicas,
            agents,
            clusters,
            leaving: Vec::new(),
            wrong: Vec::new(),
        };
        (scene, sites)
    }

    /// Does one fault, waits for as long as it lasts, and undoes it. What drains goes on after it.
    pub(crate) fn suffer(&mut self, planned: Planned, clock: Stopwatch, number: usize) -> Fault {
        let from = clock.elapsed();
        let (target, lasts) = (planned.target, planned.lasts);
        let balancer = self.replicas.balancer.address.clone();
        match planned.kind {
            Kind::Reset => {
                let said = self.clusters[target].link(&format!("kill {balancer}"));
                if said.contains("ended 0 ") {
                    self.wrong
                        .push(format!("{planned}: there was no connection"));
                }
            }
            Kind::BlackHole => {
                let resumed = self.resumed_by(target);
                self.clusters[target].link(&format!("stall {balancer}"));
                thread::sleep(lasts);
                if self.resumed_by(target) <= resumed {
                    self.wrong.push(format!("{planned}: no session noticed it"));
                }
                self.clusters[target].link("restore");
            }
            Kind::Loss => {
                self.clusters[target].link("loss 10");
                thread::sleep(lasts);
                self.clusters[target].link("restore");
            }
            Kind::KillAgent => {
                self.agents[target].kill();
                thread::sleep(lasts);
                self.agents[target].run();
                // It is there when it has a session.
                tests::wait_until("the agent is back", SETTLED, || {
                    self.agents[target].metric("towline_agent_sessions") >= Some(1.0)
                });
            }
            Kind::ReplaceAgent => self.leaving.push(Leaving {
                fault: number,
                gateway: None,
                agent: Some(self.agents[target].replace()),
            }),
            Kind::KillReplica => {
                self.replicas.kill(target);
                thread::sleep(lasts);
                self.replicas.run(target);
            }
            Kind::ReplaceReplica => self.leaving.push(Leaving {
                fault: number,
                gateway: Some(self.replicas.replace(target)),
                agent: None,
            }),
            Kind::Database => {
                self.replicas.database.kill();
                thread::sleep(lasts);
                self.replicas.database.resume();
            }
            Kind::ApiServer => {
                self.clusters[target].kill_api_server();
                thread::sleep(lasts);
                self.clusters[target].repair();
            }
        }
        Fault {
            planned,
            from,
            to: clock.elapsed(),
        }
    }

    /// Looks which of those that drain have ended, and notes it at their faults. What ended otherwise than with success.
    pub(crate) fn drained(&mut self, clock: Stopwatch, faults: &mut [Fault]) -> Vec<String> {
        let mut wrong = Vec::new();
        self.leaving.retain_mut(|leaving| {
            let program = match (&mut leaving.gateway, &mut leaving.agent) {
                (Some(gateway), _) => gateway.program(),
                (None, Some(agent)) => agent,
                (None, None) => return false,
            };
            faults[leaving.fault].to = clock.elapsed();
            let Some(status) = program.ended() else {
                return true;
            };
            if !status.success() {
                let planned = faults[leaving.fault].planned;
                wrong.push(format!("{planned}: it ended with {status}"));
            }
            false
        });
        wrong
    }

    /// Waits for all that drains; what didn't end as it should.
    pub(crate) fn all_drained(&mut self, clock: Stopwatch, faults: &mut [Fault]) -> Vec<String> {
        let since = Stopwatch::new();
        let mut wrong = Vec::new();
        loop {
            wrong.extend(self.drained(clock, faults));
            if self.leaving.is_empty() {
                return wrong;
            }
            if since.elapsed() > DRAINED {
                let still = self.leaving.drain(..);
                let still = still.map(|leaving| faults[leaving.fault].planned);
                wrong.extend(still.map(|planned| format!("{planned}: it still drains")));
                return wrong;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// What each process holds once nothing is under way: the least of some seconds.
    pub(crate) fn held(&mut self) -> Vec<Held> {
        tests::wait_until(
            "each agent has a session with either replica",
            SETTLED,
            || {
                let sessions = self.replicas.metrics("towline_sessions");
                sessions.iter().sum::<f64>() >= (BOTH * BOTH) as f64
            },
        );
        let mut least = self.held_now();
        let since = Stopwatch::new();
        while since.elapsed() < Duration::from_secs(15) {
            thread::sleep(Duration::from_millis(500));
            for (least, now) in least.iter_mut().zip(self.held_now()) {
                least.files = least.files.min(now.files);
                least.tasks = least.tasks.min(now.tasks);
                least.memory = least.memory.min(now.memory);
            }
        }
        least
    }

    fn held_now(&mut self) -> Vec<Held> {
        let mut held = Vec::new();
        for n in 0..BOTH {
            let tasks = self.replicas.replica(n).metric("towline_tasks");
            let usage = self.replicas.replica(n).program().usage();
            held.push(Held {
                name: format!("replica {n}"),
                files: usage.files,
                tasks,
                memory: usage.resident_kib,
            });
        }
        for (n, agent) in self.agents.iter_mut().enumerate() {
            let tasks = agent.metric("towline_agent_tasks").unwrap_or_default();
            let usage = agent.program().usage();
            held.push(Held {
                name: format!("agent {n}"),
                files: usage.files,
                tasks,
                memory: usage.resident_kib,
            });
        }
        held
    }

    /// How often sessions went on over another connection, as agents that run now have counted.
    pub(crate) fn resumed(&mut self) -> f64 {
        (0..BOTH).map(|n| self.resumed_by(n)).sum()
    }

    fn resumed_by(&mut self, agent: usize) -> f64 {
        let counted = self.agents[agent].metric("towline_agent_sessions_resumed_total");
        counted.unwrap_or_default()
    }

    /// What doesn't run that should, and what didn't happen that should have.
    pub(crate) fn runs(&mut self) -> Vec<String> {
        let mut wrong = std::mem::take(&mut self.wrong);
        for n in 0..BOTH {
            if !self.replicas.replica(n).program().runs() {
                wrong.push(format!("replica {n} has ended by itself"));
            }
            if !self.agents[n].program().runs() {
                wrong.push(format!("agent {n} has ended by itself"));
            }
        }
        wrong
    }
}
