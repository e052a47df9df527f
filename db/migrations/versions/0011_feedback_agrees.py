"""Feedback whose two statements contradicted each other: the label counts.

Revision: 0011
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "WITH corrected AS ("
        "UPDATE feedback f SET is_correct = (f.label = p.label) FROM predictions p "
        "WHERE p.id = f.prediction_id AND f.label IS NOT NULL AND f.is_correct <> (f.label = p.label) RETURNING 1) "
        "INSERT INTO audit_log (action, subject, detail) "
        "SELECT 'feedback.correct', 'upgrade', jsonb_build_object('rows', count(*)) FROM corrected "
        "HAVING count(*) > 0"
    )


def downgrade() -> None:
    """Leave the rows: which of the two statements was meant is not known."""
