"""x"""
from zenray.cli.output import new_app
app = new_app("x")
@app.command()
def doctor() -> None: ...
