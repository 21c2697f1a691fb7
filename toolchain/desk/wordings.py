"""Our own training wordings of the desk's questions, beside those of reasoning-gym.

Data only: a group of wordings asks for the same call. The held-out set uses the same wordings with
new numbers; `unseen.jsonl` uses none of them.
"""

from __future__ import annotations

from collections.abc import Mapping

WORDINGS: Mapping[str, tuple[str, ...]] = {
    "equations": (
        "What is {v} if {e}?",
        "{e}. What value does {v} have?",
        "Please solve {e}.",
        "I need the solution of the equation {e}.",
        "For which {v} does {e} hold?",
        "Given {e}, work out {v}.",
        "My homework says {e}. What is {v}?",
        "Find {v}: {e}",
    ),
    "equations-riddle+": (
        "{a} times a number plus {b} is {c}. What is the number?",
        "I think of a number, multiply it by {a} and add {b}. I get {c}. What was my number?",
        "If you take a number {a} times and add {b} you have {c}. Which number is it?",
        "A taxi costs {b} at the start and {a} per kilometer. The ride cost {c}. How many kilometers was it?",
    ),
    "equations-riddle-": (
        "{a} times a number minus {b} is {c}. What is the number?",
        "I think of a number, multiply it by {a} and subtract {b}. I get {c}. What was my number?",
        "If you take a number {a} times and take away {b} you have {c}. Which number is it?",
    ),
    "sums": (
        "What is {e}?",
        "Calculate {e}.",
        "How much is {e}?",
        "Work out {e} for me.",
        "{e} = ?",
        "Can you add this up: {e}",
    ),
    "products": (
        "What is {a} times {b}?",
        "Multiply {a} by {b}.",
        "How much is {a} * {b}?",
        "{a} x {b} = ?",
        "There are {a} boxes with {b} pens each. How many pens is that?",
        "A ticket costs {b} dollars. How much do {a} tickets cost?",
        "A hall has {a} rows of {b} seats. How many seats are there?",
        "I save {b} dollars a week. How much do I have after {a} weeks?",
    ),
    "expressions": (
        "What is {e}?",
        "Evaluate {e}.",
        "Work out {e}.",
        "What does {e} come to?",
        "Compute this expression: {e}",
        "{e} = ?",
    ),
    "durations": (
        "How long is it from {start} to {end}? Answer as HH:MM.",
        "The train leaves at {start} and arrives at {end}. How long is the ride in HH:MM?",
        "I slept from {start} until {end}. How long was that, in HH:MM?",
        "A film starts at {start} and is over at {end}. What is its length in HH:MM?",
        "Our shop is open from {start} to {end}. How long is that? Use HH:MM.",
        "The class runs between {start} and {end}. Give its length as HH:MM.",
    ),
    "clock+": (
        "What time is it {span} after {start}?",
        "It is {start}. What time will it be in {span}?",
        "A cake goes into the oven at {start} and needs {span}. When is it done?",
        "The bus leaves at {start} and takes {span}. When does it arrive?",
        "Add {span} to {start}.",
        "My parking ticket from {start} is good for {span}. Until when?",
    ),
    "clock-": (
        "What time was it {span} before {start}?",
        "It is {start}. What time was it {span} ago?",
        "I must be there at {start} and the way takes {span}. When do I have to leave?",
        "The film ended at {start} after {span}. When did it begin?",
        "Go back {span} from {start}. What time is that?",
    ),
    "weekdays": (
        "What weekday is {d}?",
        "Which day of the week was {d}?",
        "My sister was born on {d}. What day of the week was that?",
        "Tell me the weekday of {d}.",
        "Was {d} a Monday, a Tuesday or which day?",
        "On {d} we have a party. Which weekday is that?",
    ),
    "legs": (
        "Count the legs of {animals}.",
        "A farm has {animals}. How many legs do they have together?",
        "There are {animals} in the room. How many legs is that?",
        "How many legs do {animals} have?",
        "I saw {animals}. How many legs did I see?",
        "Total number of legs: {animals}?",
    ),
    "sorting-asc": (
        "Sort from smallest to largest: {numbers}",
        "Put {numbers} in ascending order.",
        "Order these numbers from low to high: {numbers}",
        "Arrange {numbers} so that the smallest comes first.",
    ),
    "sorting-desc": (
        "Sort from largest to smallest: {numbers}",
        "Put {numbers} in descending order.",
        "Order these numbers from high to low: {numbers}",
        "Arrange {numbers} so that the largest comes first.",
    ),
    "filtering-keep-larger": (
        "Which of {numbers} are greater than {limit}?",
        "Keep only the numbers above {limit}: {numbers}",
        "From {numbers} pick those larger than {limit}.",
    ),
    "filtering-keep-smaller": (
        "Which of {numbers} are less than {limit}?",
        "Keep only the numbers below {limit}: {numbers}",
        "From {numbers} pick those smaller than {limit}.",
    ),
    "filtering-remove-larger": (
        "Delete everything above {limit} from this list: {numbers}",
        "Take out the numbers greater than {limit}: {numbers}",
        "Without the numbers larger than {limit}, what is left of {numbers}?",
    ),
    "filtering-remove-smaller": (
        "Delete everything below {limit} from this list: {numbers}",
        "Take out the numbers less than {limit}: {numbers}",
        "Without the numbers smaller than {limit}, what is left of {numbers}?",
    ),
    "fractions": (
        "Reduce {f} to lowest terms.",
        "What is {f} in simplest form?",
        "Simplify {f}.",
        "Write {f} as simply as possible.",
        "Cancel down the fraction {f}.",
        "{f} of the class passed. What is that in lowest terms?",
    ),
    "gcd": (
        "What is the greatest common divisor of {list}?",
        "Find the largest number that divides {list}.",
        "Greatest common factor of {list}?",
        "gcd of {list}",
        "What is the biggest number that goes into {list} without remainder?",
        "Ropes of {list} meters are cut into equal pieces, as long as possible. How long is a piece?",
    ),
    "lcm": (
        "What is the least common multiple of {list}?",
        "Find the smallest number that {list} all divide.",
        "lcm of {list}",
        "Smallest common multiple of {list}?",
        "Lights blink every {list} seconds and start together. After how many seconds do they blink together again?",
        "Which is the lowest number that is a multiple of {list}?",
    ),
    "bases": (
        "Write the {source} number {n} in {target}.",
        "What is {n} ({source}) in {target}?",
        "Convert {n} from {source} to {target}.",
        "{n} is written in {source}. How is it written in {target}?",
        "Change {n} in {source} into {target}.",
    ),
    "primes": (
        "How many primes are there from {low} to {high}?",
        "Count the primes between {low} and {high}.",
        "How many prime numbers lie between {low} and {high}, both ends included?",
        "Number of primes from {low} up to {high}?",
        "Starting at {low} and stopping at {high}, how many primes do you meet?",
    ),
    "units": (
        "Convert {x} {u} to {w}.",
        "How many {w} are {x} {u}?",
        "What is {x} {u} in {w}?",
        "I have {x} {u}. How much is that in {w}?",
        "Express {x} {u} in {w}.",
        "{x} {u} = how many {w}?",
    ),
    "percentages": (
        "What is {p}% of {n}?",
        "How much is {p} percent of {n}?",
        "{p}% of {n} people said yes. How many people is that?",
        "Find {p}% of {n}.",
        "A bill is {n} dollars and the tax is {p} percent. How high is the tax?",
        "Out of {n} apples {p}% are red. How many are red?",
    ),
    "equation-then": (
        "Solve {e} for {v}, then {then}.",
        "Find {v} in {e} and {then}. What do you get?",
        "First solve {e}. Then {then}.",
        "If {e}, what do you get when you {then}?",
        "Take the solution of {e} and {then}.",
    ),
    "unit-then-": (
        "A bag holds {x} {u}. {y} {w} are taken out. How many {w} are left?",
        "We have {x} {u} and use {y} {w}. How many {w} remain?",
        "What is {x} {u} minus {y} {w}, in {w}?",
        "From {x} {u} take away {y} {w}. Answer in {w}.",
        "Of {x} {u}, {y} {w} are gone. How many {w} are still there?",
    ),
    "unit-then+": (
        "A bag holds {x} {u}. {y} {w} are put in. How many {w} are there now?",
        "We have {x} {u} and get {y} {w} more. How many {w} is that?",
        "What is {x} {u} plus {y} {w}, in {w}?",
        "Add {y} {w} to {x} {u}. Answer in {w}.",
    ),
    "legs-then*": (
        "Every leg of {animals} gets {k} rings. How many rings is that?",
        "How many legs do {animals} have? Multiply that by {k}.",
        "A sock costs {k} dollars. What do socks for all legs of {animals} cost?",
    ),
    "legs-then+": (
        "How many legs do {animals} and a machine with {k} legs have together?",
        "Count the legs of {animals} and add {k}.",
        "In a room are {animals} and furniture with {k} legs. How many legs are there?",
    ),
    "legs-then/": (
        "Count the legs of {animals} and divide by {k}.",
        "{k} children share the work of counting the legs of {animals} equally. How many legs does each count?",
        "How many legs do {animals} have, divided by {k}?",
    ),
    "discounts-": (
        "A coat costs {n} dollars and is reduced by {p}%. What is the new price?",
        "What is {n} minus {p} percent?",
        "Take {p}% off {n}.",
        "The price of {n} dollars falls by {p} percent. What is it now?",
        "With {p}% discount, what do I pay for something at {n} dollars?",
    ),
    "discounts+": (
        "A rent of {n} dollars goes up by {p}%. What is the new rent?",
        "What is {n} plus {p} percent?",
        "Add {p}% to {n}.",
        "The bill is {n} dollars and I tip {p} percent. What do I pay in all?",
        "A town of {n} people grows by {p}%. How many people live there then?",
    ),
    "shifts-": (
        "I work from {start} to {end} with a break of {k} minutes. How long do I work? Answer as HH:MM.",
        "A shift runs from {start} to {end}, minus {k} minutes of break. How long is it in HH:MM?",
        "The drive went from {start} to {end} with a stop of {k} minutes. How long did we drive, in HH:MM?",
        "Take {k} minutes off the time between {start} and {end}. Give HH:MM.",
    ),
    "shifts+": (
        "I work from {start} to {end} and then {k} minutes at home. How long is that in all? Answer as HH:MM.",
        "A flight goes from {start} to {end}, and boarding takes {k} minutes more. How long is both in HH:MM?",
        "Add {k} minutes to the time between {start} and {end}. Give HH:MM.",
    ),
}

# start, a gain, a loss, the question; for sums that never fall below zero
STORIES: tuple[tuple[str, str, str, str], ...] = (
    ("A shop opens with {n} loaves", "{n} more are baked", "{n} are sold", "How many loaves are there now?"),
    ("I had {n} points", "I won {n}", "I lost {n}", "What is my score now?"),
    ("A bus starts with {n} people", "{n} get on", "{n} get off", "How many people are on the bus?"),
    ("A tank has {n} liters", "{n} liters are added", "{n} liters are used", "How many liters are in it?"),
    ("My account shows {n} dollars", "{n} dollars come in", "{n} dollars go out", "How many dollars are left?"),
)
