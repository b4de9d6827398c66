"""The store as a library, with an executor of one's own: no HTTP server, no LangGraph."""

import asyncio

from runs_es import ActiveRun, CreateRunCommand, ListRunMessagesQuery, Settings, open_store_async


class Parrot:
    assistants = ("parrot",)  # it takes no other runs

    async def execute(self, run: ActiveRun) -> None:
        said = ""
        for word in str(run.run.kwargs["input"]).split():
            said = f"{said} {word}".strip()
            await run.publish("custom", {"token": word})
        await run.record_message({"id": f"{run.run.run_id}-1", "type": "ai", "content": said})
        await run.publish("values", {"said": said})


async def main() -> None:
    async with open_store_async(Settings(), executor=Parrot()) as store:
        command = CreateRunCommand(thread_id="t1", create_thread=True, assistant_id="parrot", input="hello there")
        handle = await store.service.create_and_stream(command)
        async for event in handle.events:
            print(event.id, event.event, event.data)
        print(await store.service.list_run_messages(ListRunMessagesQuery(thread_id="t1")))


if __name__ == "__main__":
    asyncio.run(main())
