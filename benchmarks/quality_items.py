"""What are the skills measured on? Labelled items from a plant, a clinic and a shop.

Written by hand for this purpose; no item's text stands in a prompt or example of the skills (a
test checks that). The errors in `dev` halves were looked at while rules were written; `held_out`
halves were run when all rules and numbers were fixed. They are not blind: one person wrote items
and rules. `CALIBRATION` is a third part, of other label sets, on which the numbers of `classify`
were set. All are short clear English: real texts are harder.
"""

from dataclasses import dataclass
from typing import Any, Literal

from covey.inference.skills.classify import Label

Half = Literal["dev", "held out"]


@dataclass(frozen=True, slots=True)
class Labelling:
    """A label set, items with their right label, and strangers that fit none."""

    name: str
    labels: tuple[Label, ...]
    dev: tuple[tuple[str, str], ...] = ()
    held_out: tuple[tuple[str, str], ...] = ()
    strangers_dev: tuple[str, ...] = ()
    strangers_held_out: tuple[str, ...] = ()

    def items(self, half: Half) -> tuple[tuple[str, str], ...]:
        """Return (text, label) of one half."""
        return self.dev if half == "dev" else self.held_out

    def strangers(self, half: Half) -> tuple[str, ...]:
        """Return texts of one half to which no label belongs."""
        return self.strangers_dev if half == "dev" else self.strangers_held_out


@dataclass(frozen=True, slots=True)
class Extraction:
    """A schema, and texts with the values that are right; None where a text does not say."""

    name: str
    schema: dict[str, Any]
    dev: tuple[tuple[str, dict[str, Any]], ...]
    held_out: tuple[tuple[str, dict[str, Any]], ...]

    def items(self, half: Half) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Return (text, right fields) of one half."""
        return self.dev if half == "dev" else self.held_out


LABELLINGS = (
    Labelling(
        name="plant: maintenance notes",
        labels=(
            Label(
                name="mechanical",
                description="bearings, gears, belts, shafts and other moving parts",
                examples=("coupling misaligned by half a millimetre", "new roller fitted"),
            ),
            Label(
                name="electrical",
                description="power supply, cables, fuses, motors' windings and relays",
                examples=("loose terminal in the switchboard", "relay contacts burnt"),
            ),
            Label(
                name="fluid",
                description="leaks, oil, water, hydraulic or compressed air lines and valves",
                examples=("puddle below the cooling line", "gasket of the valve drips"),
            ),
            Label(
                name="software",
                description="programs, firmware, screens, licences and computers",
                examples=("operator panel needed a restart", "recipe file was overwritten"),
            ),
        ),
        dev=(
            ("gearbox of mixer_4 grinds when it starts from cold", "mechanical"),
            ("belt on conveyor-9 worn at the edges, replaced", "mechanical"),
            ("play in the spindle bearing of lathe 2", "mechanical"),
            ("fuse F3 blown in cabinet C-12", "electrical"),
            ("phase L2 missing on the feed of press-1", "electrical"),
            ("insulation of motor cable rubbed through near station 8", "electrical"),
            ("oil found under hydraulic press 3, seal of cylinder swapped", "fluid"),
            ("air line to gripper hisses at the fitting", "fluid"),
            ("coolant tank empty again, hose was cracked", "fluid"),
            ("controller firmware updated to 4.2.1", "software"),
            ("touch screen frozen until the process was killed", "software"),
            ("barcode service lost its database connection", "software"),
        ),
        held_out=(
            ("chain tensioner snapped on lift-2", "mechanical"),
            ("rollers of the sorter squeal, greased", "mechanical"),
            ("shaft of fan_11 bent after the jam", "mechanical"),
            ("teeth of the drive pinion chipped", "mechanical"),
            ("breaker Q7 trips as soon as the heater is on", "electrical"),
            ("contactor of oven-3 welded shut", "electrical"),
            ("24 V supply drops to 17 V under load", "electrical"),
            ("hydraulic pump loses pressure through the return valve", "fluid"),
            ("water dripping from pipe joint above line 5", "fluid"),
            ("pneumatic cylinder slow, filter full of oil", "fluid"),
            ("PLC program rolled back after last night's download", "software"),
            ("historian disk full, old records deleted", "software"),
        ),
        strangers_dev=(
            "canteen closes at two on Friday",
            "new parking rules for visitors",
            "please sign the holiday list",
        ),
        strangers_held_out=(
            "birthday cake in the break room",
            "bus line 14 is rerouted this week",
            "the choir meets on Tuesday",
        ),
    ),
    Labelling(
        name="clinic: messages at the desk",
        labels=(
            Label(
                name="appointment",
                description="to book, move or cancel a visit",
                examples=("is there a free slot on Monday?", "I must move my visit"),
            ),
            Label(
                name="prescription",
                description="a repeat or change of medicine",
                examples=("my tablets are nearly gone", "please send the recipe to my chemist"),
            ),
            Label(
                name="billing",
                description="invoices, payments and insurance",
                examples=("the bill names the wrong insurer", "how can I pay by card?"),
            ),
            Label(
                name="results",
                description="findings of the laboratory or of imaging",
                examples=("are the blood values back?", "what did the X-ray show?"),
            ),
        ),
        dev=(
            ("Could I come in on Thursday afternoon instead?", "appointment"),
            ("I won't be able to make it tomorrow at nine, sorry.", "appointment"),
            ("When does Dr Okafor have time next week?", "appointment"),
            ("I need a refill of my blood pressure medication.", "prescription"),
            ("Can the inhaler be ordered again, same dose?", "prescription"),
            ("The pharmacy says my prescription has expired.", "prescription"),
            ("I was charged twice for the same visit.", "billing"),
            ("Does my insurance cover the flu shot?", "billing"),
            ("Please send the invoice to my new address.", "billing"),
            ("Has my biopsy report arrived?", "results"),
            ("I'd like to know what the MRI of my knee showed.", "results"),
            ("Are my cholesterol numbers available yet?", "results"),
        ),
        held_out=(
            ("Can we reschedule the check-up for my son?", "appointment"),
            ("Please cancel my session on the 14th.", "appointment"),
            ("Any opening for a first consultation this month?", "appointment"),
            ("Do you have something earlier than 11:30?", "appointment"),
            ("My insulin will run out on Sunday, please renew it.", "prescription"),
            ("The new pills make me dizzy, may I have the old ones?", "prescription"),
            ("Repeat order for thyroid tablets, 50 micrograms.", "prescription"),
            ("Why is there a reminder fee on my statement?", "billing"),
            ("I paid 80 euros by bank transfer last week.", "billing"),
            ("My insurer refuses the claim you sent.", "billing"),
            ("The lab took blood on Friday, is there any news?", "results"),
            ("Was anything found in the ultrasound scan?", "results"),
        ),
        strangers_dev=(
            "The vending machine ate my coin.",
            "Who left the blue umbrella in the hall?",
            "The lift is out of order.",
        ),
        strangers_held_out=(
            "Your radio is too loud in the waiting room.",
            "Is the cat that sits at the door yours?",
            "The plants in the hall need water.",
        ),
    ),
    Labelling(
        name="shop: customers' mail",
        labels=(
            Label(
                name="delivery",
                description="where a parcel is, and when it comes",
                examples=("tracking has not moved for days", "courier rang at the wrong house"),
            ),
            Label(
                name="refund",
                description="to give goods back and get money back",
                examples=("I return the jacket, please pay me back", "still no credit note"),
            ),
            Label(
                name="product question",
                description="size, material, function or stock of an article",
                examples=("does the kettle have a thermostat?", "is it sold in green?"),
            ),
            Label(
                name="praise",
                description="thanks, and being content",
                examples=("lovely shop, I will be back", "thank you for the quick help"),
            ),
        ),
        dev=(
            ("My parcel was due on Monday and is still not here.", "delivery"),
            ("Can the box be left with my neighbour?", "delivery"),
            ("The driver says the address does not exist.", "delivery"),
            ("I sent the shoes back two weeks ago, where is my money?", "refund"),
            ("The lamp came broken and I want to be reimbursed.", "refund"),
            ("Please cancel and return the amount to my card.", "refund"),
            ("Is this backpack waterproof?", "product question"),
            ("Which batteries does the torch take?", "product question"),
            ("Do you have the blue sweater in XL?", "product question"),
            ("Best coffee grinder I ever bought, thanks!", "praise"),
            ("Your staff were so kind on the phone.", "praise"),
            ("Everything perfect as always.", "praise"),
        ),
        held_out=(
            ("Order 7731 says delivered but nothing arrived.", "delivery"),
            ("How long does shipping to Norway take?", "delivery"),
            ("May I pick it up at the depot instead?", "delivery"),
            ("The package has been at customs since the 3rd.", "delivery"),
            ("I'd like my money back, the zip broke on day one.", "refund"),
            ("When will the 39.90 be credited to my account?", "refund"),
            ("How do I send the vase back at your cost?", "refund"),
            ("What is the pan's handle made of?", "product question"),
            ("Will the shelf carry 40 kg?", "product question"),
            ("Does the charger fit the older model?", "product question"),
            ("So happy with my new bike, you made my day.", "praise"),
            ("Great quality and beautifully wrapped.", "praise"),
        ),
        strangers_dev=(
            "We offer cheap advertising for your site.",
            "Do you need an accountant?",
            "Join our webinar about tax law.",
        ),
        strangers_held_out=(
            "I am a student and look for an internship.",
            "Our choir asks for a donation.",
            "Are you the firm that painted the bridge?",
        ),
    ),
)

CALIBRATION = (
    Labelling(
        name="office: tickets",
        labels=(
            Label(
                name="network",
                description="wireless, VPN, cables and slow connections",
                examples=("wifi drops in the meeting room",),
            ),
            Label(
                name="printing",
                description="printers, toner, paper and scans",
                examples=("the copier jams on the second tray",),
            ),
            Label(
                name="account",
                description="passwords, access rights and log-in",
                examples=("I am locked out of the portal",),
            ),
        ),
        dev=(
            ("VPN disconnects every ten minutes", "network"),
            ("no internet on the third floor", "network"),
            ("video calls stutter over wireless", "network"),
            ("file share takes minutes to open", "network"),
            ("toner low on the machine in room 12", "printing"),
            ("pages come out blank", "printing"),
            ("scan to mail does nothing", "printing"),
            ("need labels printed, driver missing", "printing"),
            ("forgot my password after holidays", "account"),
            ("please give Mia rights on the finance folder", "account"),
            ("two-factor code is never accepted", "account"),
            ("new colleague cannot sign in", "account"),
        ),
        strangers_dev=(
            "the coffee machine is empty",
            "who has the key to the bicycle shed",
            "window in room 4 does not close",
            "lunch with the auditors at one",
            "lost a grey scarf",
            "the plant by the door is dying",
        ),
    ),
    Labelling(
        name="farm: diary",
        labels=(
            Label(
                name="livestock",
                description="cows, sheep, hens, their feed and health",
                examples=("two lambs born before dawn",),
            ),
            Label(
                name="crops",
                description="sowing, harvest, weeds and soil",
                examples=("barley stands knee high",),
            ),
            Label(
                name="machines",
                description="tractors, trailers, tools and their repair",
                examples=("baler knots again",),
            ),
            Label(
                name="weather",
                description="rain, frost, wind and sun",
                examples=("first frost on the meadow",),
            ),
            Label(
                name="sales",
                description="market, prices, buyers and contracts",
                examples=("milk price up a cent",),
            ),
        ),
        dev=(
            ("hens lay less since the fox came", "livestock"),
            ("vet looked at the limping cow", "livestock"),
            ("ewe rejected her twin", "livestock"),
            ("wheat sown on the north field", "crops"),
            ("thistles pulled between the beans", "crops"),
            ("potatoes lifted, good size", "crops"),
            ("tractor lost hydraulic oil on the hill", "machines"),
            ("mower blades sharpened", "machines"),
            ("flat tyre on the trailer", "machines"),
            ("thunder all night, 30 mm in the gauge", "weather"),
            ("dry east wind since Sunday", "weather"),
            ("fog until ten, then mild", "weather"),
            ("sold six bales to the riding school", "sales"),
            ("dairy renewed the agreement for a year", "sales"),
            ("carrots fetched little at the market", "sales"),
        ),
        strangers_dev=(
            "aunt Rosa called about the wedding",
            "watched the football final",
            "finished reading the novel",
            "dentist at half past three",
            "Leo learnt to whistle",
            "new curtains in the kitchen",
        ),
    ),
    Labelling(
        name="library: is it a complaint?",
        labels=(
            Label(
                name="complaint",
                description="something was bad or annoys the reader",
                examples=("the reading room is always too cold",),
            ),
            Label(
                name="request",
                description="the reader asks to get or know something",
                examples=("could you order the second volume?",),
            ),
        ),
        dev=(
            ("the children shouted for an hour", "complaint"),
            ("your staff was rude to me", "complaint"),
            ("pages were torn out of the atlas", "complaint"),
            ("I waited weeks for nothing", "complaint"),
            ("may I borrow this for two more weeks?", "request"),
            ("please reserve a desk near the window", "request"),
            ("do you keep old newspapers?", "request"),
            ("can you put me on the list for the novel?", "request"),
        ),
        strangers_dev=(
            "42 59 17",
            "the sky over the harbour",
            "photosynthesis in ferns",
            "iron, nickel, cobalt",
        ),
    ),
)

READING: dict[str, Any] = {
    "type": "object",
    "properties": {
        "machine": {"type": "string"},
        "metric": {"type": "string", "description": "what was measured"},
        "value": {"type": "number"},
        "unit": {"type": "string"},
    },
    "required": ["machine", "metric", "value", "unit"],
}
VITALS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "patient": {"type": "string", "description": "patient id"},
        "time": {"type": "string"},
        "value": {"type": "number", "description": "the measured value"},
        "unit": {"type": "string"},
    },
}
ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "order": {"type": "string", "description": "order id"},
        "quantity": {"type": "integer", "description": "how many pieces"},
        "carrier": {"enum": ["DHL", "UPS", "post"]},
    },
}
CLIMATE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "temperature": {"type": "number", "description": "in °C"},
        "humidity": {"type": "number", "description": "in %"},
    },
}
LOG: dict[str, Any] = {
    "type": "object",
    "properties": {
        "time": {"type": "string"},
        "address": {"type": "string", "description": "IP address of the client"},
        "path": {"type": "string"},
        "size": {"type": "integer", "description": "bytes sent"},
    },
}


def _reading(
    machine: str | None, metric: str | None, value: float | None, unit: str | None
) -> dict[str, Any]:
    return {"machine": machine, "metric": metric, "value": value, "unit": unit}


def _vitals(
    patient: str | None, time: str | None, value: float | None, unit: str | None
) -> dict[str, Any]:
    return {"patient": patient, "time": time, "value": value, "unit": unit}


def _order(order: str | None, quantity: int | None, carrier: str | None) -> dict[str, Any]:
    return {"order": order, "quantity": quantity, "carrier": carrier}


def _climate(temperature: float | None, humidity: float | None) -> dict[str, Any]:
    return {"temperature": temperature, "humidity": humidity}


def _log(time: str | None, address: str | None, path: str | None, size: int | None) -> Any:
    return {"time": time, "address": address, "path": path, "size": size}


EXTRACTIONS = (
    Extraction(
        name="plant: readings",
        schema=READING,
        dev=(
            ("kiln_2 has a temperature of 842 °C.", _reading("kiln_2", "temperature", 842, "°C")),
            ("Vibration of blower-5 is 3.7 mm/s.", _reading("blower-5", "Vibration", 3.7, "mm/s")),
            (
                "Last night tank-31 showed a level of 4.05 m, limit 5 m.",
                _reading("tank-31", "level", 4.05, "m"),
            ),
            (
                "pressure at boiler_1 rose to 11.2bar while boiler_3 was off",
                _reading("boiler_1", "pressure", 11.2, "bar"),
            ),
            ("robot_a6 draws a current of 1,250 mA", _reading("robot_a6", "current", 1250, "mA")),
            ("Flow through pump-8: 61,5 l/min", _reading("pump-8", "Flow", 61.5, "l/min")),
            (
                "speed of spindle-4 fell to 2900 rpm after 3 minutes",
                _reading("spindle-4", "speed", 2900, "rpm"),
            ),
            (
                "Freezer7's temperature: -18.5 °C, alarm at -12 °C",
                _reading("Freezer7", "temperature", -18.5, "°C"),
            ),
        ),
        held_out=(
            ("humidity near dryer_9 is 38 %", _reading("dryer_9", "humidity", 38, "%")),
            (
                "compressor-2 measured a pressure of 7.85 bar.",
                _reading("compressor-2", "pressure", 7.85, "bar"),
            ),
            (
                "At 06:15 turbine_3 reached a speed of 3,000 rpm, allowed are 3,600 rpm.",
                _reading("turbine_3", "speed", 3000, "rpm"),
            ),
            ("torque of screwdriver-12: 4.8Nm", _reading("screwdriver-12", "torque", 4.8, "Nm")),
            (
                "silo-B2 reports a level of 12.4 m after silo-B1 was emptied",
                _reading("silo-B2", "level", 12.4, "m"),
            ),
            (
                "the voltage of charger_6 dropped to 46,2 V",
                _reading("charger_6", "voltage", 46.2, "V"),
            ),
            (
                "oven-14 holds its temperature: 219.5 °C, setpoint 220 °C",
                _reading("oven-14", "temperature", 219.5, "°C"),
            ),
            ("noise at saw-3 is 91 dB(A)", _reading("saw-3", "noise", 91, "dB")),
        ),
    ),
    Extraction(
        name="plant: several machines, no reading",
        schema=READING,
        dev=(
            (
                "After mixer-7 was cleaned, kiln-4 reached a temperature of 612 °C.",
                _reading("kiln-4", "temperature", 612, "°C"),
            ),
            (
                "pump_b took over from pump_a and shows a pressure of 4.4 bar",
                _reading("pump_b", "pressure", 4.4, "bar"),
            ),
            (
                "Operator K7 saw that boiler-2 had a pressure of 9.1 bar.",
                _reading("boiler-2", "pressure", 9.1, "bar"),
            ),
            (
                "Unlike press-5, press-6 runs at a speed of 30 rpm.",
                _reading("press-6", "speed", 30, "rpm"),
            ),
            (
                "The level of tank-9, which feeds line_2, is 71 %.",
                _reading("tank-9", "level", 71, "%"),
            ),
            ("conveyor-3 was cleaned.", _reading("conveyor-3", None, None, None)),
            ("new operators were trained", _reading(None, None, None, None)),
        ),
        held_out=(
            (
                "While saw-1 stood still, planer-2 drew a current of 17 A.",
                _reading("planer-2", "current", 17, "A"),
            ),
            (
                "valve_33 next to pump_12 has a temperature of 48 °C.",
                _reading("valve_33", "temperature", 48, "°C"),
            ),
            (
                "Technician T4 noted a torque of 55 Nm at robot-9.",
                _reading("robot-9", "torque", 55, "Nm"),
            ),
            (
                "line_6 stopped because oven-8 had a temperature of 305 °C.",
                _reading("oven-8", "temperature", 305, "°C"),
            ),
            (
                "Between mixer-1 and mixer-2 only mixer-2 showed a vibration of 6.6 mm/s.",
                _reading("mixer-2", "vibration", 6.6, "mm/s"),
            ),
            ("press-11 got a new coat of paint", _reading("press-11", None, None, None)),
            ("the night shift went home early", _reading(None, None, None, None)),
        ),
    ),
    Extraction(
        name="clinic: vitals",
        schema=VITALS,
        dev=(
            ("08:40 P-2210 pulse 72 bpm", _vitals("P-2210", "08:40", 72, "bpm")),
            ("Patient A117: glucose 5.4 mmol/L", _vitals("A117", None, 5.4, "mmol/L")),
            ("At 21:05, P-0043 had 38.9 °C.", _vitals("P-0043", "21:05", 38.9, "°C")),
            ("K-88 weighs 71.3 kg", _vitals("K-88", None, 71.3, "kg")),
            (
                "systolic pressure of B-501 is 142 mmHg (08:12)",
                _vitals("B-501", "08:12", 142, "mmHg"),
            ),
            ("haemoglobin for C30 came back at 13.1 g/dL", _vitals("C30", None, 13.1, "g/dL")),
            ("P-77 slept well.", _vitals("P-77", None, None, None)),
        ),
        held_out=(
            ("P-3105, 07:20: saturation 97 %", _vitals("P-3105", "07:20", 97, "%")),
            ("creatinine of D-19 is 88 µmol/L", _vitals("D-19", None, 88, "µmol/L")),
            ("At 13:30 the pulse of E204 was 58 bpm.", _vitals("E204", "13:30", 58, "bpm")),
            ("F-12 drank 250 ml at 16:00", _vitals("F-12", "16:00", 250, "ml")),
            ("potassium 4.1 mmol/L in the sample of G-7", _vitals("G-7", None, 4.1, "mmol/L")),
            ("P-640 is 1.82 m tall", _vitals("P-640", None, 1.82, "m")),
            ("H-55 refused the measurement.", _vitals("H-55", None, None, None)),
        ),
    ),
    Extraction(
        name="shop: orders",
        schema=ORDER,
        dev=(
            (
                "Order W-20931: 3 pieces of art. TX-14, sent by DHL",
                _order("W-20931", 3, "DHL"),
            ),
            ("12 mugs under order W-20977 went by post", _order("W-20977", 12, "post")),
            ("UPS took order R_4410 with 1 table", _order("R_4410", 1, "UPS")),
            ("order A9911 was paid", _order("A9911", None, None)),
            ("Customer K-3 wants 2 more in order W-30001", _order("W-30001", 2, None)),
            (
                "order N-778 (40 pieces, 12.5 kg) is posted tomorrow with ups",
                _order("N-778", 40, "UPS"),
            ),
        ),
        held_out=(
            ("6 chairs of order W-41200 left with UPS", _order("W-41200", 6, "UPS")),
            ("Order B7720 from client C-19 has 15 pieces", _order("B7720", 15, None)),
            ("dhl lost order W-40118", _order("W-40118", None, "DHL")),
            (
                "1,200 screws for order S_90 go by post",
                _order("S_90", 1200, "post"),
            ),
            ("order W-43333: pieces: 8, weight 2.4 kg, DHL", _order("W-43333", 8, "DHL")),
            ("The order was cancelled.", _order(None, None, None)),
        ),
    ),
    Extraction(
        name="plant: hall climate",
        schema=CLIMATE,
        dev=(
            ("hall 2: temperature 21.5 °C, humidity 44 %", _climate(21.5, 44)),
            ("humidity is 61 % and temperature 18 °C", _climate(18, 61)),
            ("The humidity rose to 70 %.", _climate(None, 70)),
            ("temp=23.4 rh=39 door=open", _climate(23.4, 39)),
            ("40 % at 19.0 °C in the store", _climate(19.0, 40)),
        ),
        held_out=(
            ("cold room 4 has a temperature of 3.8 °C and a humidity of 82 %", _climate(3.8, 82)),
            ("humidity: 35 %; temperature: 26.1 °C; CO2: 640 ppm", _climate(26.1, 35)),
            ("Outside temperature is -7 °C.", _climate(-7, None)),
            ("51 % in hall 6 with 20.2 °C", _climate(20.2, 51)),
            ("All doors were closed at 22:00.", _climate(None, None)),
        ),
    ),
    Extraction(
        name="log: requests",
        schema=LOG,
        dev=(
            (
                "2026-03-02 11:20:07 192.0.2.14 GET /img/a.png 200 5120 bytes",
                _log("2026-03-02 11:20:07", "192.0.2.14", "/img/a.png", 5120),
            ),
            (
                "client 198.51.100.7 asked for /api/v2/stock at 09:15:44, sent 812 bytes",
                _log("09:15:44", "198.51.100.7", "/api/v2/stock", 812),
            ),
            (
                "2026-03-02T12:00:00Z denied: /etc/shadow from 203.0.113.9",
                _log("2026-03-02T12:00:00Z", "203.0.113.9", "/etc/shadow", None),
            ),
            (
                "sent 77 bytes of '/tmp/x y' to 192.0.2.200:8080",
                _log(None, "192.0.2.200:8080", "/tmp/x y", 77),
            ),
        ),
        held_out=(
            (
                "2026-07-19 23:59:59 203.0.113.50 PUT /upload/b-2.csv 201 90412 bytes",
                _log("2026-07-19 23:59:59", "203.0.113.50", "/upload/b-2.csv", 90412),
            ),
            (
                "/status was read by 192.0.2.33 (64 bytes)",
                _log(None, "192.0.2.33", "/status", 64),
            ),
            (
                "10:04:31 timeout for 198.51.100.200",
                _log("10:04:31", "198.51.100.200", None, None),
            ),
            (
                "2026-07-20T00:00:03Z 198.51.100.4 GET /docs/ 304 0 bytes",
                _log("2026-07-20T00:00:03Z", "198.51.100.4", "/docs/", 0),
            ),
        ),
    ),
)

# Shown to keep a claim honest: a small model must not judge how bad something is.
SEVERITIES = ("normal", "warning", "critical")
SEVERITY: tuple[tuple[str, str], ...] = (
    ("all cells of battery rack 4 are balanced", "normal"),
    ("shift handover done, nothing to note", "normal"),
    ("filter changed as planned", "normal"),
    ("pump-12 runs at 61 % of its rated flow", "normal"),
    ("self test of the sprinkler passed", "normal"),
    ("door of cabinet 9 was closed again", "normal"),
    ("oil of gearbox-3 is due in 40 hours", "warning"),
    ("vibration of fan-2 has doubled since Monday", "warning"),
    ("backup of the recipe server is two days old", "warning"),
    ("temperature of the transformer is 4 degrees below its limit", "warning"),
    ("one of two cooling pumps is out of service", "warning"),
    ("sensor 17 gives the same value for an hour", "warning"),
    ("flames seen behind oven-1, hall is being cleared", "critical"),
    ("emergency stop pulled on press-2, hand was trapped", "critical"),
    ("chlorine detector above 3 ppm, evacuate the building", "critical"),
    ("pressure vessel 5 is over its burst limit and rising", "critical"),
    ("both cooling pumps failed and the reactor heats up", "critical"),
    ("lift cable broken, car hangs by the brake", "critical"),
)


def _log_of(*parts: tuple[int, str]) -> tuple[str, ...]:
    """Return lines with a time each; every part is repeated, `{}` is what changes."""
    lines: list[str] = []
    for times, text in parts:
        lines += [
            f"2026-05-{4 + at // 60:02d} 06:{at % 60:02d}:00 {text.format(at)}"
            for at in range(times)
        ]
    return tuple(lines)


LOGS: dict[Half, tuple[tuple[str, ...], ...]] = {
    "dev": (
        _log_of((14, "backup of volume {} finished"), (3, "backup of volume {} was skipped")),
        tuple(f"temperature is {20 + at / 2:g} °C" for at in range(12)),
        (*(f"silo level at {90 - 4 * at} %" for at in range(9)), "refill due", "refill due"),
        _log_of((22, "door 4 opened by card {}")),
        _log_of((6, "print job {} done"), (6, "print job {} cancelled"), (1, "toner changed")),
        tuple(f"queue of {at % 3} tasks, latency {30 + at % 2} ms" for at in range(15)),
    ),
    "held out": (
        _log_of((9, "sample {} labelled"), (4, "sample {} sent to the lab")),
        tuple(f"pressure of {8 - at / 10:g} bar" for at in range(16)),
        _log_of((30, "login of user{} from desk")),
        (*(f"pulse of {70 + at} bpm" for at in range(7)), "bed 3 free", "bed 5 free"),
        _log_of((5, "parcel {} scanned"), (2, "parcel {} returned"), (11, "pallet {} loaded")),
        tuple(f"flow was {40 + (at * 7) % 5} l/min" for at in range(20)),
    ),
}
