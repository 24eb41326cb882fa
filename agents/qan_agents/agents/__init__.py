"""The agents that a run can train: one file is one agent, and its name is the file's with "-" for "_".

A file is imported only when its agent is asked for, so each may need libraries of its own.
"""

from qan_agents.experiments.agent import (
    AGENTS,
    Agent,
    AgentSpec,
    EnvFacts,
    Progress,
    ValuePolicy,
    agent_class,
    agent_names,
    register_agent,
    training_of,
)

__all__ = [
    "AGENTS",
    "Agent",
    "AgentSpec",
    "EnvFacts",
    "Progress",
    "ValuePolicy",
    "agent_class",
    "agent_names",
    "register_agent",
    "training_of",
]
