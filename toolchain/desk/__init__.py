"""The desk: a task with its team, and the pattern for another one.

    team.yaml        agents, engine, options; names topology, tools and questions as entry points
    topology.py      how the agents work together                       specialties.py  what each of them is shown
    questions.py     families, splits, unseen wordings; families.py makes them in the words of wordings.py
    tools.py         exact tools, of numbers (tools_numbers.py) and of things (tools_world.py); graph.py: their tables
    job.py           its part of `soloist run`; recorded/ is the recording that ships

No other room but `commands` imports from here.
"""
