// Turns "from,to[,status]" lines into the bulk JSON that wrangler and nearkey load:
//
//     node rules.mjs < moved.csv > rules.json
//     node rules.mjs --sample 1000000 > rules.json     # rules to try it with

import { once } from "node:events";
import { createInterface } from "node:readline";

async function* lines() {
	const [option, count] = process.argv.slice(2);
	if (option !== "--sample") {
		yield* createInterface({ input: process.stdin });
		return;
	}
	for (let i = 0; i < Number(count); i++) {
		yield `/articles/${i},https://new.example/a/${i.toString(36)}`;
	}
}

let separator = "[\n";
for await (const line of lines()) {
	if (line.trim() === "") {
		continue;
	}
	const [from, to, status] = line.split(",").map((field) => field.trim());
	// The path as a browser sends it, which is what the Worker looks up.
	const key = new URL(from, "http://old.example").pathname.replace(/(.)\/+$/, "$1");
	const rule = { key, value: to, ...(status && { metadata: { status: Number(status) } }) };
	if (!process.stdout.write(separator + JSON.stringify(rule))) {
		await once(process.stdout, "drain"); // a million rules do not wait in memory
	}
	separator = ",\n";
}
process.stdout.write(separator === "[\n" ? "[]\n" : "\n]\n");
