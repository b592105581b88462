// Every Monday everybody is drawn somebody to have lunch with. In KV are
//
//     person/NAME   who takes part
//     round/TIME    a JSON array of groups, the metadata says how many
//     count/NAME    how often somebody was drawn, and in which round last
//
// A run that ended half way is repeated with the same time. It keeps the round that
// is there, and counts those who were not counted yet.

import { pair } from "./pairs.js";

/**
 * @typedef {{ PEOPLE: KVNamespace }} Env
 * @typedef {{ rounds: number, last: string }} Count
 */

const MAX_PEOPLE = 900; // each costs a write; an invocation has a thousand operations
const AT_ONCE = 50; // counts that are under way
const KEEP_SECONDS = 365 * 24 * 3600; // rounds

export default {
	/**
	 * @param {ScheduledController} controller
	 * @param {Env} env
	 */
	async scheduled(controller, env) {
		const time = new Date(controller.scheduledTime).toISOString();
		const groups = await round(env.PEOPLE, time);
		await count(env.PEOPLE, groups.flat(), time);
		console.log(`${groups.length} groups at ${time}`);
	},

	/**
	 * GET / is the last round, /rounds all of them, /counts how often people were drawn.
	 * @param {Request} request
	 * @param {Env} env
	 */
	async fetch(request, env) {
		switch (new URL(request.url).pathname) {
			case "/": {
				const { time, groups } = await lastRound(env.PEOPLE);
				return Response.json({ time, groups }, { status: time ? 200 : 404 });
			}
			case "/rounds":
				return Response.json(await all(env.PEOPLE, "round/"));
			case "/counts":
				return Response.json(await all(env.PEOPLE, "count/"));
		}
		return new Response("There is nothing here.\n", { status: 404 });
	},
};

/**
 * Draws the round of a time unless it was drawn.
 * @param {KVNamespace} people
 * @param {string} time
 */
async function round(people, time) {
	const drawn = /** @type {string[][] | null} */ (await people.get(`round/${time}`, "json"));
	if (drawn) {
		return drawn;
	}
	const names = (await all(people, "person/")).map(({ name }) => name);
	if (names.length > MAX_PEOPLE) {
		throw new Error(`${names.length} people; at most ${MAX_PEOPLE} can be drawn`);
	}
	const last = await lastRound(people);
	const groups = pair(names, last.groups);
	await people.put(`round/${time}`, JSON.stringify(groups), {
		expirationTtl: KEEP_SECONDS,
		metadata: { people: names.length, groups: groups.length },
	});
	return groups;
}

/**
 * Counters are written here and nowhere else, and no two runs overlap; KV itself has
 * nothing that would keep two writers from losing a count. The round in which
 * somebody was counted last is kept with the count: a repeated run adds nothing.
 * @param {KVNamespace} people
 * @param {string[]} names
 * @param {string} time
 */
async function count(people, names, time) {
	const counts = new Map((await all(people, "count/")).map(({ name, metadata }) => [name, /** @type {Count} */ (metadata)]));
	const missing = names.filter((name) => counts.get(name)?.last !== time);
	for (let i = 0; i < missing.length; i += AT_ONCE) {
		await Promise.all(
			missing.slice(i, i + AT_ONCE).map((name) => {
				/** @type {Count} */
				const metadata = { rounds: (counts.get(name)?.rounds ?? 0) + 1, last: time };
				return people.put(`count/${name}`, "", { metadata });
			}),
		);
	}
}

/**
 * @param {KVNamespace} people
 * @returns {Promise<{ time: string | null, groups: string[][] }>}
 */
async function lastRound(people) {
	const time = (await all(people, "round/")).at(-1)?.name ?? null; // times are in order
	const groups = time && /** @type {string[][] | null} */ (await people.get(`round/${time}`, "json"));
	return { time, groups: groups || [] };
}

/**
 * All keys with a prefix, which is taken off, with their metadata.
 * @param {KVNamespace} people
 * @param {string} prefix
 */
async function all(people, prefix) {
	/** @type {{ name: string, metadata: unknown }[]} */
	const found = [];
	/** @type {string | undefined} */
	let cursor;
	do {
		const page = await people.list({ prefix, cursor });
		found.push(...page.keys.map(({ name, metadata }) => ({ name: name.slice(prefix.length), metadata })));
		cursor = page.list_complete ? undefined : page.cursor;
	} while (cursor);
	return found;
}
